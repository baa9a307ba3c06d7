"""STL-10's files of bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ppll.data.published import Part
from ppll.data.stl10 import read_binary
from ppll.errors import DataError

from .conftest import random_images
from .official import binary


def read(tmp_path: Path, images: bytes, labels: bytes) -> Part:
    files = [tmp_path / "train_X.bin", tmp_path / "train_y.bin"]
    for file, content in zip(files, (images, labels), strict=True):
        file.write_bytes(content)
    return read_binary(files, "train")


def test_images_are_turned_and_labels_begin_with_zero(tmp_path: Path) -> None:
    images, labels = read(tmp_path, *binary(random_images(3, size=96), [9, 0, 4]))
    assert np.array_equal(images, random_images(3, size=96))
    assert images.flags.c_contiguous
    assert labels.tolist() == [9, 0, 4]
    assert labels.dtype == np.int64


def test_an_image_comes_channel_by_channel_and_column_by_column(tmp_path: Path) -> None:
    content = np.zeros(3 * 96 * 96, np.uint8)
    content[96 * 96 + 2 * 96 + 5] = 7  # green, third column, sixth row
    images, _ = read(tmp_path, content.tobytes(), b"\1")
    assert np.argwhere(images).tolist() == [[0, 1, 5, 2]]


ONE = bytes(3 * 96 * 96)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (ONE[1:], b"\1", r"train_X\.bin has 27647 bytes, which is no whole number of images"),
        (ONE + b"\0", b"\1", "has 27649 bytes"),
        (ONE, b"\1\2", r"train_X\.bin with train_y\.bin has 1 images and 2 labels"),
        (ONE * 2, b"\1", "has 2 images and 1 labels"),
        (b"", b"", "has 0 images and 0 labels"),
        (ONE * 2, b"\1\0", r"train_y\.bin: label 1 is 0, allowed are 1 to 10"),
        (ONE, b"\x0b", "label 0 is 11"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, images: bytes, labels: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(tmp_path, images, labels)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"test_X\.bin cannot be read: No such file"):
        read_binary([tmp_path / "test_X.bin", tmp_path / "test_y.bin"], "test")
