"""STL-10: larger colour images of ten kinds of things, few of them with labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from ppll.data.dataset import Dataset
from ppll.data.published import ImageColumns, Layout, Part, PublishedSet, checked_part, content_of
from ppll.data.sources import load_published
from ppll.errors import DataError

__all__ = ["STL10", "read_binary", "stl10"]

_SIDE: Final = 96


def stl10(root: Path | None) -> Dataset:
    """5,000 images to train and 8,000 to test with, RGB of 96 by 96, in ten classes.

    Only what has labels is read; the 100,000 images without any are not.

    Source: A. Coates, H. Lee and A. Y. Ng, "An Analysis of Single-Layer Networks in Unsupervised
    Feature Learning", AISTATS 2011.

    Args:
        root: Folder of local files: parquet files of ``tanganke/stl10``, or the official
            ``train_X.bin``, ``train_y.bin``, ``test_X.bin`` and ``test_y.bin``. See
            ``load_published``.

    Raises:
        DataError: There are no files, one is damaged, or a package is missing that reads them.
    """
    return load_published(STL10, root)


def read_binary(files: Sequence[Path], split: str) -> Part:  # noqa: ARG001
    """Read official files of images and labels, both nothing but bytes.

    An image has its three channels one after the other, each column by column; labels are 1 to 10
    in the file and 0 to 9 here.

    Raises:
        DataError: A file cannot be read or has another size, or a label is no class.
    """
    images_file, labels_file = files
    pixels, labels = (np.frombuffer(content_of(file), np.uint8) for file in files)
    num_bytes = 3 * _SIDE * _SIDE
    if len(pixels) % num_bytes != 0:
        raise DataError(
            f"{images_file} has {len(pixels)} bytes, which is no whole number of images of "
            f"{num_bytes} bytes: fetch it again."
        )
    images = pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 1, 3, 2)
    source = f"{images_file} with {labels_file.name}"
    images, classes = checked_part(images, labels, source, lowest=1, num_classes=10)
    return images, classes - 1


STL10: Final = PublishedSet(
    name="stl10",
    hub="tanganke/stl10",
    hub_folder="data",
    columns=ImageColumns("image", "label", size=(_SIDE, _SIDE), num_classes=10),
    mean=(0.4467, 0.4398, 0.4066),
    std=(0.2603, 0.2566, 0.2713),
    official=(
        Layout(
            ("train_X.bin", "train_y.bin"),
            ("test_X.bin", "test_y.bin"),
            "stl10_binary",
            read_binary,
        ),
    ),
)
