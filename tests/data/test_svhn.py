"""SVHN's MATLAB files: what scipy writes and what MATLAB may, and what is wrong with them."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppll.data.matlab import read_arrays
from ppll.data.published import Part
from ppll.data.svhn import read_matlab
from ppll.errors import DataError

from .conftest import random_images
from .official import matlab


def read(tmp_path: Path, content: bytes) -> Part:
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(content)
    return read_matlab([path], "train")


def saved(**content: Any) -> bytes:
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, content)
    return buffer.getvalue()


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("number", [1, 2, 4, 5, 30])
def test_images_are_read_exactly_and_ten_is_the_digit_zero(
    tmp_path: Path, number: int, compressed: bool
) -> None:
    labels = [(index * 7) % 10 for index in range(number)]
    content = matlab(random_images(number), labels, compressed=compressed)
    images, found = read(tmp_path, content)
    assert np.array_equal(images, random_images(number))
    assert images.flags.c_contiguous
    assert found.tolist() == labels
    assert found.dtype == np.int64


def test_a_single_image_may_lack_the_last_axis(tmp_path: Path) -> None:
    image = random_images(1)
    content = saved(X=image[0].transpose(1, 2, 0), y=np.array([[10]], np.uint8))
    images, labels = read(tmp_path, content)
    assert np.array_equal(images, image)
    assert labels.tolist() == [0]


def test_what_else_a_file_holds_does_not_matter(tmp_path: Path) -> None:
    more = {"a": "text", "b": 1.5, "c": {"d": np.eye(3)}, "e": np.array([[1], [2]], object)}
    images = random_images(2)
    content = saved(**more, X=images.transpose(2, 3, 1, 0), y=np.array([1, 2], np.int64))
    assert np.array_equal(read(tmp_path, content)[0], images)


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def test_labels_that_matlab_holds_as_double_are_stored_as_bytes(tmp_path: Path) -> None:
    """MATLAB writes whole numbers in as few bytes as they need, whatever type they have."""
    matrix = element(6, struct.pack("<II", 6, 0)) + element(5, struct.pack("<ii", 3, 1))
    matrix += (
        struct.pack("<HH", 1, 1) + b"y\0\0\0" + struct.pack("<HH", 2, 3) + bytes([1, 10, 3, 0])
    )
    images = saved(X=random_images(3).transpose(2, 3, 1, 0))
    found, labels = read(tmp_path, images + element(14, matrix))
    assert np.array_equal(found, random_images(3))
    assert labels.tolist() == [1, 0, 3]


X = random_images(2).transpose(2, 3, 1, 0)
Y = np.array([[1], [2]], np.uint8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no MATLAB file of level 5"),
        (b"a page that says 404\n" * 50, "is no MATLAB file of level 5"),
        (saved(X=X, y=Y)[:-100], "is not a whole MATLAB file .*announced"),
        (matlab(random_images(2), [1, 2])[:-9], "is not a whole MATLAB file"),
        (saved(X=X), "must hold X.* found uint8 .* and nothing"),
        (saved(y=Y), "must hold X.* found nothing"),
        (saved(X=X.astype(float), y=Y), r"must hold X.* found float64 of shape \(32, 32, 3, 2\)"),
        (saved(X=X[:31], y=Y), r"must hold .* found uint8 of shape \(31, 32, 3, 2\)"),
        (saved(X=X[..., None], y=Y), r"must hold .* found uint8 of shape \(32, 32, 3, 2, 1\)"),
        (saved(X=X, y=Y / 2), "must hold .* and float64"),
        (saved(X=X, y=Y[:1]), "has 2 images and 1 labels"),
        (saved(X=X[..., :0], y=Y[:0]), "has 0 images|is not a whole"),
        (saved(X=X, y=Y - 1), "label 0 is 0, allowed are 1 to 10"),
        (saved(X=X, y=Y + 9), "label 1 is 11"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=rf"train_32x32\.mat:? {words}"):
        read(tmp_path, content)


def compressed(tag: bytes, num_zeros: int) -> bytes:
    """A file whose one element is compressed, begins with ``tag``, and goes on with zeros."""
    body = zlib.compress(tag + bytes(num_zeros))
    return bytes(124) + b"\0\1IM" + struct.pack("<II", 15, len(body)) + body


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        (struct.pack("<II", 14, 992), "its compressed part holds more than it announces"),
        (bytes(8), "its compressed part holds more than it announces"),
        (struct.pack("<HH", 1, 4) + bytes(4), "its compressed part holds more than it announces"),
        (struct.pack("<II", 14, 1000), "it announces 1008 bytes, more than any variable has"),
        (struct.pack("<II", 14, 2**32 - 1), "more than any variable has"),
        (struct.pack("<II", 14, 10**8), "more than any variable has"),
    ],
)
def test_a_bomb_is_not_inflated(tag: bytes, words: str, tmp_path: Path) -> None:
    content = compressed(tag, 2**24)
    assert len(content) < 20_000
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=words):
            read_arrays(content, tmp_path / "bomb.mat", most_bytes=1000)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("most_bytes", [6208, 6207])
def test_a_variable_may_be_as_large_as_the_bound(most_bytes: int, tmp_path: Path) -> None:
    content, size = matlab(random_images(2), [1, 2]), 2 * 3 * 32 * 32 + 64
    assert size == 6208
    if most_bytes >= size:
        assert read_arrays(content, tmp_path, most_bytes=most_bytes)["X"].shape == (32, 32, 3, 2)
    else:
        with pytest.raises(DataError, match=f"announces {size} bytes"):
            read_arrays(content, tmp_path, most_bytes=most_bytes)


def test_what_does_not_fit_into_memory_is_named(tmp_path: Path, monkeypatch) -> None:
    def exhausted(*args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("ppll.data.matlab._inflated", exhausted)
    with pytest.raises(DataError, match=r"x\.mat does not fit into memory"):
        read_arrays(matlab(random_images(1), [1]), tmp_path / "x.mat")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"test_32x32\.mat cannot be read: No such file"):
        read_matlab([tmp_path / "test_32x32.mat"], "test")
