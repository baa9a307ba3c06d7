"""Damaged and foreign files: every message names the file, and the row where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppll.data.published import ImageColumns, Labels, Pixels
from ppll.errors import DataError

from .conftest import encoded, png, random_images, write_parquet

pa = pytest.importorskip("pyarrow")
pytest.importorskip("PIL")


def read(*files: Path) -> tuple[Pixels, Labels]:
    from ppll.data.parquet import read_files

    return read_files(files, ImageColumns("img", "label", size=(32, 32), num_classes=10))


GOOD = [encoded(image) for image in random_images(3)]


def test_images_are_read_exactly(tmp_path: Path) -> None:
    images, labels = read(
        write_parquet(tmp_path / "a.parquet", GOOD, [0, 1, 2]),
        write_parquet(tmp_path / "b.parquet", GOOD[:1], [3]),
    )
    assert np.array_equal(images, random_images(3)[[0, 1, 2, 0]])
    assert images.flags.c_contiguous
    assert labels.tolist() == [0, 1, 2, 3]
    assert labels.dtype == np.int64


def test_columns_that_are_not_needed_do_not_matter(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", GOOD, [0, 1, 2], more=pa.array([1.0, 2.0, 3.0]))
    assert len(read(path)[0]) == 3


@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_truncated_file_is_named(tmp_path: Path, kept: int) -> None:
    path = write_parquet(tmp_path / "a.parquet", GOOD, [0, 1, 2])
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"a\.parquet is not a whole parquet file"):
        read(path)


def test_damage_in_the_middle_is_found(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", GOOD, [0, 1, 2])
    content = bytearray(path.read_bytes())
    content[100:1100] = bytes(1000)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet"):
        read(path)


def test_other_kinds_of_files_and_none_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(DataError, match=r"a\.parquet is not a whole parquet file"):
        read(path)
    path.write_text("a page that says 404\n" * 100)
    with pytest.raises(DataError, match=r"a\.parquet is not a whole parquet file"):
        read(path)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"img": None}, "has no column 'img': found label"),
        ({"label": None}, "has no column 'label': found img"),
        ({"img": pa.array([b"a", b"b", b"c"])}, "'img' must be a struct .* found binary"),
        ({"img": pa.array([{"path": "a"}] * 3)}, "'img' must be a struct .*path: string"),
        ({"img": pa.array([{"bytes": "a"}] * 3)}, "'img' must be a struct"),
        ({"label": pa.array(["a", "b", "c"])}, "'label' must hold whole numbers, found string"),
        ({"label": pa.array([0, -1, 99])}, "the label in row 1 is -1, allowed are 0 to 9"),
        ({"label": pa.array([0, 1, None])}, "the label in row 2 is None"),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", GOOD, [0, 1, 2], **columns)
    with pytest.raises(DataError, match=rf"a\.parquet.*{words}"):
        read(path)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, "is missing"),
        (b"", "cannot be decoded"),
        (b"not an image", "cannot be decoded"),
        (GOOD[0][:500], "cannot be decoded"),
        (encoded(random_images(1, size=31)[0]), "is RGB of 31 x 31 pixels, .* 32 x 32"),
        (encoded(random_images(1)[0], "L"), "is L of 32 x 32 pixels, allowed is RGB"),
        (png(16, "RGB", side=32), r"has more than 8 bits a channel \(RGB\)"),
    ],
    ids=["missing", "empty", "text", "truncated", "size", "grey", "deep"],
)
def test_bad_image_is_named(tmp_path: Path, image: bytes | None, words: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", [GOOD[0], image, GOOD[1]], [0, 1, 2])
    with pytest.raises(DataError, match=rf"a\.parquet: the image in row 1 {words}"):
        read(path)


def test_whole_struct_may_be_missing(tmp_path: Path) -> None:
    images = pa.array([{"bytes": GOOD[0]}, None, {"bytes": GOOD[1]}])
    path = write_parquet(tmp_path / "a.parquet", GOOD, [0, 1, 2], img=images)
    with pytest.raises(DataError, match="the image in row 1 is missing"):
        read(path)


def test_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.parquet has no rows"):
        read(write_parquet(tmp_path / "a.parquet", [], []))
