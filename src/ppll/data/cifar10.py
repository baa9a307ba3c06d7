"""CIFAR-10: 60,000 colour images of ten kinds of things."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from ppll.data.dataset import Dataset
from ppll.data.plain_pickle import read_plain
from ppll.data.progress import counted
from ppll.data.published import (
    ImageColumns,
    Layout,
    Part,
    PublishedSet,
    checked_part,
    content_of,
    joined,
)
from ppll.data.sources import load_published
from ppll.errors import DataError

__all__ = ["CIFAR10", "cifar10", "read_archive", "read_batches"]

_FOLDER: Final = "cifar-10-batches-py"
_ARCHIVE: Final = "cifar-10-python.tar.gz"
_BATCHES: Final = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
_MD5: Final = {
    _ARCHIVE: "c58f30108f718f92721af3b95e74349a",
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""Of the release's files, so that what is read are its bytes and no others."""


def cifar10(root: Path | None) -> Dataset:
    """50,000 images to train and 10,000 to test with, RGB of 32 by 32, in ten classes.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Args:
        root: Folder of local files: parquet files of ``uoft-cs/cifar10``, the official Python
            batches, or the archive that these come in. See ``load_published``.

    Raises:
        DataError: There are no files, one is damaged, or a package is missing that reads them.
    """
    return load_published(CIFAR10, root)


def read_batches(files: Sequence[Path], split: str, md5: Mapping[str, str] = _MD5) -> Part:
    """Read the official Python batches of one part.

    Args:
        files: The batches; the end of each path tells which one it is.
        split: What they are together.
        md5: MD5 of every batch by name; nothing is read of a file that has another.

    Raises:
        DataError: A file cannot be read, or is another one than its name says.
    """
    batches = counted(f"CIFAR-10 {split}", files)
    return joined([_read_batch(content_of(file), file, md5[file.name]) for file in batches])


def read_archive(files: Sequence[Path], split: str, md5: Mapping[str, str] = _MD5) -> Part:
    """Read the batches of one part out of the official archive.

    Raises:
        DataError: The archive cannot be read, or is another one than its name says.
    """
    (path,), names = files, _BATCHES[split]
    try:
        with path.open("rb") as archive:
            found = hashlib.file_digest(archive, lambda: hashlib.md5(usedforsecurity=False))
        _check_md5(found.hexdigest(), path, md5[path.name])
        batches = _members(path, names)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): fetch it again.") from None
    if missing := [name for name in names if name not in batches]:
        raise DataError(f"{path} holds no {_FOLDER}/{missing[0]}: fetch it again.")
    return joined([_read_batch(batches[name], path / name, md5[name]) for name in names])


def _members(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """What the archive holds of ``names``, in one pass, since every step back begins anew."""
    contents = {}
    paths = {f"{_FOLDER}/{name}": name for name in names}
    with tarfile.open(path, "r:gz") as archive:
        wanted = (member for member in archive if member.name in paths)
        for _, member in zip(counted(str(path), names), wanted, strict=False):
            file = archive.extractfile(member)
            if file is not None:
                contents[paths[member.name]] = file.read()
    return contents


def _check_md5(found: str, source: Path, expected: str) -> None:
    if found != expected:
        raise DataError(
            f"{source} has the MD5 {found}, but the official file has {expected}: fetch it again."
        )


def _read_batch(content: bytes, source: Path, md5: str) -> Part:
    _check_md5(hashlib.md5(content, usedforsecurity=False).hexdigest(), source, md5)
    try:
        batch = read_plain(content)
    except DataError as error:
        raise DataError(f"{source} {error}") from None
    images, labels = batch.get("data"), batch.get("labels")
    if not (isinstance(images, np.ndarray) and images.shape[1:] == (3072,) and _is_row(labels)):
        raise DataError(
            f"{source} must hold 'data', an array (N, 3072) of uint8, and 'labels', a list of N "
            "whole numbers: fetch it again."
        )
    pixels = images.reshape(-1, 3, 32, 32)
    return checked_part(pixels, np.array(labels, np.int64), source, lowest=0, num_classes=10)


def _is_row(labels: Any) -> bool:
    return isinstance(labels, list) and all(type(label) is int for label in labels)


CIFAR10: Final = PublishedSet(
    name="cifar10",
    hub="uoft-cs/cifar10",
    hub_folder="plain_text",
    columns=ImageColumns("img", "label", size=(32, 32), num_classes=10),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    official=(
        Layout(_BATCHES["train"], _BATCHES["test"], _FOLDER, read_batches),
        Layout((_ARCHIVE,), (_ARCHIVE,), _FOLDER, read_archive),
    ),
)
