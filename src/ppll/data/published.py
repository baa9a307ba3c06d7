"""What is known of a published set of labelled images, and the files that may hold it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ppll.durable import open_regular
from ppll.errors import DataError

__all__ = ["SPLITS", "ImageColumns", "Labels", "Layout", "Part", "Pixels", "PublishedSet"]
__all__ += ["check_root", "checked_part", "content_of", "joined"]

SPLITS: Final = ("train", "test")

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Part = tuple[Pixels, Labels]
"""Images (N, 3, H, W) and labels (N)."""


@dataclass(frozen=True)
class ImageColumns:
    """What a table must hold.

    Attributes:
        image: Column of structs whose ``bytes`` are an encoded image.
        label: Column of whole numbers.
        size: Width and height of every image, in pixels; all are RGB.
        num_classes: Labels are 0 to one less than this.
    """

    image: str
    label: str
    size: tuple[int, int]
    num_classes: int


@dataclass(frozen=True)
class Layout:
    """One kind of files that hold a whole set.

    Attributes:
        train: Names of the files of the training part; with ``*`` several may fit. All are needed.
        test: The same of the test part.
        folder: Name of the folder that these files come in; they are looked for beside it, too.
        read: Makes a part of its files, in the order of their names here, and of ``"train"`` or
            ``"test"``. Raises ``DataError`` naming the file, ``ImportError`` where a package lacks.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    folder: str
    read: Callable[[Sequence[Path], str], Part]

    def names(self, split: str) -> tuple[str, ...]:
        """Names of the files of one part."""
        return {"train": self.train, "test": self.test}[split]

    def __str__(self) -> str:
        return ", ".join(dict.fromkeys(self.train + self.test))


@dataclass(frozen=True)
class PublishedSet:
    """All that tells one set from another.

    Attributes:
        name: What a recipe calls it, and the folder in which it is looked for.
        hub: Its name on the Hugging Face hub.
        hub_folder: Folder there that holds ``train-*.parquet`` and ``test-*.parquet``.
        columns: What those files hold.
        mean: Of every channel of the training images, 0 to 1.
        std: Standard deviation of every channel, like ``mean``.
        official: Kinds of files in which its authors publish it, the likeliest first.
    """

    name: str
    hub: str
    hub_folder: str
    columns: ImageColumns
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    official: tuple[Layout, ...]


def check_root(root: Path, holds: str) -> None:
    """Refuse a folder that is not there.

    Args:
        root: ``data.root``.
        holds: What it is to hold, as the end of a sentence.

    Raises:
        DataError: It is no folder.
    """
    if not root.is_dir():
        what = "a file" if root.is_file() else "not there"
        raise DataError(f"data.root = {root} is {what}: name the folder that holds {holds}.")


def checked_part(
    images: Pixels, labels: npt.NDArray[Any], source: Path | str, *, lowest: int, num_classes: int
) -> Part:
    """Images and labels of an official file, with labels from ``lowest`` on, as it has them.

    Raises:
        DataError: There are none, more of one than of the other, or a label is no class.
    """
    if len(images) != len(labels) or len(labels) == 0:
        raise DataError(
            f"{source} has {len(images)} images and {len(labels)} labels, there must be one label "
            "an image, and some: fetch it again."
        )
    highest = lowest + num_classes - 1
    bad = np.flatnonzero((labels < lowest) | (labels > highest))
    if len(bad) > 0:
        raise DataError(
            f"{source}: label {bad[0]} is {labels[bad[0]]}, allowed are {lowest} to {highest}: "
            "fetch it again."
        )
    return np.ascontiguousarray(images), labels.astype(np.int64)


def content_of(file: Path) -> bytes:
    """Everything in a file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with open_regular(file) as opened:
            return opened.read()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None


def joined(parts: Sequence[Part]) -> Part:
    """Several files' images and labels as one."""
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)
