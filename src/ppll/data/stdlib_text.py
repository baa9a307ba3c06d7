"""The source of Python's standard library as text: there is some on every machine."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from ppll.data.dataset import Dataset
from ppll.data.split import Split
from ppll.errors import DataError
from ppll.randomness import fold

__all__ = ["NUM_BYTES", "stdlib_text"]

NUM_BYTES: Final = 256
"""Tokens there are: the values of a byte."""

_LEFT_OUT: Final = ("encodings", "pydoc_data", "test", "site-packages", "dist-packages")
"""Folders of tables, of tests that distributions leave out, and of what is no standard library."""


def stdlib_text(
    root: Path | None,
    *,
    length: int = 128,
    only: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    num_test: int = 1024,
    fingerprint: str = "",
) -> Dataset:
    """Windows of the bytes of Python's own source files; every byte's target is the next one.

    The files are all ``*.py`` below the folder of the standard library, in the order of their
    paths, but for tables (``encodings``, ``pydoc_data``) and the interpreter's tests. Whole files
    are kept for the test, in the order of a hash of their paths, until they have enough windows,
    and validation keeps whole files, too. Windows never reach over the end of a file, where what
    is left is dropped. So no part of a file is in two parts of the data.

    Another version of Python has other files: ``fingerprint`` tells.

    Args:
        root: Another folder of Python source; the running interpreter's without.
        length: Bytes of a window (T).
        only: Folders directly below that are read, such as ``["idlelib"]``; all without.
        without: Folders directly below that are left out, besides those named above.
        num_test: Windows to test with; what the last of these files has beyond them is dropped.
        fingerprint: First digits of the SHA-256 that the text must have; any will do without.

    Raises:
        DataError: There are no such files, they are too short, or it is another text.
    """
    for name, value in (("length", length), ("num_test", num_test)):
        if value < 1:
            raise DataError(f"data.{name} must be at least 1, found {value}.")
    folder = Path(sysconfig.get_path("stdlib")) if root is None else root
    files = _files(folder, only, (*_LEFT_OUT, *without))
    texts = {str(f.relative_to(folder).as_posix()): _bytes(f) for f in files}
    _check_fingerprint(texts, fingerprint)
    kept = _test_names(texts, length, num_test)
    train, test = (
        _windows(folder, [text for name, text in texts.items() if (name in kept) is part], length)
        for part in (False, True)
    )
    return Dataset(train, Split(test.inputs[:num_test], test.targets[:num_test]), NUM_BYTES)


def _test_names(
    texts: dict[str, npt.NDArray[np.uint8]], length: int, num_test: int
) -> frozenset[str]:
    """Names of the files that are tested with."""
    kept: list[str] = []
    num_windows = 0
    for name in sorted(texts, key=lambda name: fold("stdlib test", name)):
        if num_windows < num_test:
            kept.append(name)
            num_windows += _num_windows(texts[name], length)
    return frozenset(kept)


def _files(folder: Path, only: Sequence[str], without: Sequence[str]) -> list[Path]:
    found = sorted(_found(folder, only, without), key=lambda p: p.relative_to(folder).as_posix())
    kept = [path for path in found if path.is_file()]
    if not kept:
        raise DataError(
            f"data.name = 'stdlib-text': there is no Python source in {folder} with data.only = "
            f"{list(only)} and without {list(without)}: name other folders, or one that holds *.py "
            f"files in data.root."
        )
    read = {path.relative_to(folder).parts[0] for path in kept}
    if unread := [name for name in only if name not in read]:
        raise DataError(
            f"data.only names {unread[0]!r}, but nothing is read of that in {folder}: it is not "
            f"there, has no *.py files, or is left out. Take it out, or name another."
        )
    return kept


def _found(folder: Path, only: Sequence[str], without: Sequence[str]) -> Iterator[Path]:
    """All that is called ``*.py``. What is left out is not looked into: the packages that are
    installed beside the standard library may be a hundred times as many files."""
    for path in folder.glob("*"):
        if only and path.name not in only:
            continue
        if path.match("*.py"):
            yield path
        if path.name not in without and path.is_dir() and not path.is_symlink():
            yield from path.rglob("*.py")


def _bytes(file: Path) -> npt.NDArray[np.uint8]:
    try:
        return np.frombuffer(file.read_bytes(), dtype=np.uint8)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}.") from None


def _check_fingerprint(texts: dict[str, npt.NDArray[np.uint8]], wanted: str) -> None:
    """SHA-256 over the lines ``sha256(bytes) path`` of all files."""
    lines = [
        f"{hashlib.sha256(text.tobytes()).hexdigest()} {name}\n" for name, text in texts.items()
    ]
    found = hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
    if not found.startswith(wanted.lower()):
        raise DataError(
            f"data.fingerprint = {wanted!r}, but the text here has {found[:16]!r}: it is that of "
            f"another version of Python. Leave the key out to take this text."
        )


def _windows(folder: Path, texts: Sequence[npt.NDArray[np.uint8]], length: int) -> Split:
    """All whole windows of the texts, and which text each is of."""
    numbers = [_num_windows(text, length) for text in texts]
    if sum(numbers) == 0:
        raise DataError(
            f"there are no windows of data.length = {length} bytes to train on, or none to test "
            f"with, in the files of {folder}: choose a smaller data.length or data.num_test, or "
            f"more folders."
        )
    inputs, targets = (
        np.concatenate(
            [
                t[at : at + n * length].reshape(n, length)
                for t, n in zip(texts, numbers, strict=True)
            ]
        )
        for at in (0, 1)
    )
    groups = np.repeat(np.arange(len(texts)), numbers)
    return Split(*(torch.from_numpy(array) for array in (inputs, targets, groups)))


def _num_windows(text: npt.NDArray[np.uint8], length: int) -> int:
    """Whole windows of a text; the last target of one is the first byte of the next."""
    return (len(text) - 1) // length if len(text) else 0
