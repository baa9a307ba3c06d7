"""The files in which data sets are published, and images of the user's own.

What is read of a damaged file is right, or as right as nothing in the file can tell, or there is
``DataError`` that names the file.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ppll.data.cifar10 import read_archive, read_batches
from ppll.data.image_folder import image_folder
from ppll.data.plain_pickle import read_plain
from ppll.data.published import Part
from ppll.data.stl10 import read_binary
from ppll.data.svhn import read_matlab
from ppll.errors import DataError
from tests.data.conftest import encoded, random_images
from tests.data.official import binary, matlab, md5, pickled_batch, write_archive

from . import fuzz, mutated_bytes

SMALL = random_images(2)
LARGE = random_images(2, size=96)
BATCH = pickled_batch(SMALL, [3, 0])
FRAME = BATCH.replace(SMALL.tobytes(), b"")
"""Of a batch everything but the pixels: where the operations are."""


def check_part(part: Part, side: int) -> None:
    images, labels = part
    assert images.dtype == np.uint8
    assert images.shape == (len(labels), 3, side, side)
    assert labels.dtype == np.int64
    assert 0 <= labels.min() <= labels.max() < 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("official")


# CIFAR-10: the MD5 keeps every mutated file out; the reader behind it is as careful alone


@fuzz(150)
@given(mutated_bytes(BATCH) | mutated_bytes(FRAME))
def test_no_mutated_batch_is_read(folder: Path, content: bytes) -> None:
    path = folder / "data_batch_1"
    path.write_bytes(content)
    if content != BATCH:
        with pytest.raises(DataError, match="data_batch_1 has the MD5"):
            read_batches([path], "train", md5({path.name: BATCH}))
    try:
        check_part(read_batches([path], "train", md5({path.name: content})), 32)
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017 (or it is read)


def plain(value: Any, depth: int = 0) -> bool:
    """Whether a value holds nothing but what is promised; depth is limited, circles may come."""
    if isinstance(value, list | tuple | dict) and depth < 5:
        return all(plain(part, depth + 1) for part in value)
    kinds = (type(None), bool, int, str, list, tuple, dict, np.ndarray)
    return isinstance(value, kinds) or type(value).__module__ == "ppll.data.plain_pickle"


class Trap:
    """Unpickled, it makes a folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("trap",)


PICKLES = [
    FRAME,
    *(pickle.dumps({"data": Trap(), "a": [1, (2, "x")]}, protocol) for protocol in range(6)),
    *(pickle.dumps({"a": [{}, 2**70, 1.5, "ü", b"x", None, True, {1}]}, n) for n in range(6)),
]


@pytest.mark.parametrize("content", PICKLES)
def test_a_mutated_pickle_gives_plain_values_and_calls_nothing(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    @fuzz(60)
    @given(mutated_bytes(content) | st.binary(max_size=40).map(lambda b: b"\x80\2" + b + b"."))
    @example(content)
    def mutate(content: bytes) -> None:
        try:
            found = read_plain(content)
        except DataError:
            return
        assert all(map(plain, found.values()))

    mutate()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "content",
    [
        b"\x80\2}q\0" + b"}" * 10**5 + b".",
        b"\x80\2" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
        b"\x80\2}q\0U\1ah\0s.",  # a dict in itself
        b"\x80\2" + b"(" * 10**5 + b".",
        b"\x80\2}r\xff\xff\xff\xff.",  # a place for which pickle would make room
        b"\x80\2T\xff\xff\xff\x7f.",
        b"\x80\2\x8a\xff" + b"\xff" * 255 + b".",
        b"\x80\2\x8e" + b"\xff" * 8 + b".",
        b"\x80\2I" + b"9" * 10**5 + b"\n.",
    ],
    ids=["dicts", "deep", "circle", "marks", "place", "length", "long", "huge", "digits"],
)
def test_what_asks_for_too_much_is_refused_or_read_at_once(content: bytes) -> None:
    try:
        read_plain(content)
    except DataError as error:
        assert len(str(error)) < 300  # noqa: PT017 (or it is read)


def test_no_mutated_archive_is_read(folder: Path) -> None:
    path = write_archive(folder / "cifar-10-python.tar.gz", {"test_batch": BATCH})
    whole, expected = path.read_bytes(), md5({"test_batch": BATCH})

    @fuzz(100)
    @given(mutated_bytes(whole))
    @example(whole)
    def mutate(content: bytes) -> None:
        path.write_bytes(content)
        digest = {path.name: hashlib.md5(content).hexdigest()}
        try:
            images, labels = read_archive([path], "test", expected | digest)
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017 (or it is read)
            return
        assert np.array_equal(images, SMALL)
        assert labels.tolist() == [3, 0]

    mutate()


# SVHN and STL-10


@st.composite
def mutated_head(draw: st.DrawFn, content: bytes) -> bytes:
    """Mutated anywhere, or where an uncompressed file says what follows, or at its end."""
    what = draw(st.sampled_from(["any", "head", "head", "end"]))
    if what == "head":
        return content[:116] + draw(mutated_bytes(content[116:200])) + content[200:]
    if what == "end":
        return content[:-80] + draw(mutated_bytes(content[-80:]))
    return draw(mutated_bytes(content))


@pytest.mark.parametrize("compressed", [True, False])
def test_a_mutated_matlab_file_is_read_or_named(folder: Path, compressed: bool) -> None:
    path = folder / "train_32x32.mat"
    whole = matlab(SMALL, [3, 0], compressed=compressed)

    @fuzz(250)
    @given(mutated_head(whole) | st.binary(max_size=100).map(lambda b: whole[:128] + b))
    @example(whole)
    def mutate(content: bytes) -> None:
        path.write_bytes(content)
        try:
            part = read_matlab([path], "train")
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017 (or it is read)
            return
        check_part(part, 32)

    mutate()


@fuzz(100)
@given(st.data())
def test_mutated_files_of_bytes_are_read_or_named(folder: Path, data: st.DataObject) -> None:
    contents = list(binary(LARGE, [3, 0]))
    which = data.draw(st.integers(0, 1))
    contents[which] = data.draw(mutated_bytes(contents[which]))
    files = [folder / "test_X.bin", folder / "test_y.bin"]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    try:
        part = read_binary(files, "test")
    except DataError as error:
        assert str(files[0]) in str(error)  # noqa: PT017 (or it is read)
        return
    check_part(part, 96)
    assert len(part[1]) == len(contents[1])


# Images of one's own


def saved(form: str, **options: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(random_images(1, size=16)[0].transpose(1, 2, 0))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(buffer, form, exif=exif, **options)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore:.*DecompressionBomb.*")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "PPM"])
def test_a_mutated_image_is_decoded_or_named(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("PIL")
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    for split in ("train", "test"):
        path = tmp_path / split / "only" / "a.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(encoded(random_images(1, size=16)[0]))
    whole = saved(form)

    @fuzz(75)
    @given(mutated_bytes(whole))
    @example(whole)
    def mutate(content: bytes) -> None:
        path.write_bytes(content)
        try:
            found = image_folder(tmp_path, size=(6, 9))
        except DataError as error:
            assert f"the image {path} " in str(error)  # noqa: PT017 (or it is read)
            return
        assert found.test.inputs.shape == (1, 3, 6, 9)

    mutate()
