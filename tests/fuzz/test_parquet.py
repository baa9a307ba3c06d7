"""Parquet files and the images in them: what they say, or ``DataError`` that names the file.

Pages carry no checksum unless their writer asked for one, so another label that is a class cannot
be told from the right one; a picture has its own checksums.
"""

from __future__ import annotations

import io
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ppll.data.cifar10 import cifar10
from ppll.data.published import ImageColumns, Labels, Pixels
from ppll.errors import DataError
from tests.data.conftest import encoded, random_images, write_parquet

from . import HUGE, fuzz, mutated_bytes

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("PIL")

SIZE = 8
IMAGES = random_images(3, size=SIZE)
GOOD = [encoded(image) for image in IMAGES]
LABELS = [0, 1, 9]


def read(path: Path) -> tuple[Pixels, Labels]:
    from ppll.data.parquet import read_files

    return read_files([path], ImageColumns("img", "label", size=(SIZE, SIZE), num_classes=10))


def check(path: Path) -> None:
    """Read a file; what comes of it are images and labels, or an error that names it."""
    try:
        images, labels = read(path)
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017 (or it is read)
        return
    assert images.dtype == np.uint8
    assert images.shape == (len(labels), 3, SIZE, SIZE)
    assert 0 <= labels.min() <= labels.max() < 10


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parquet") / "train-0.parquet"


@st.composite
def mutated_file(draw: st.DrawFn, content: bytes) -> bytes:
    """Mutated anywhere, or in the footer, where everything is described."""
    size = 8 + struct.unpack("<I", content[-8:-4])[0]
    pages, footer = content[:-size], content[-size:]
    what = draw(st.sampled_from(["any", "footer", "footer", "length", "metadata"]))
    if what == "any":
        return draw(mutated_bytes(content))
    if what == "length":
        length = draw(st.sampled_from([0, 1, size - 9, size, 2**31, 2**32 - 1]))
        return content[:-8] + struct.pack("<I", length) + content[-4:]
    if what == "metadata":  # with a length that fits again
        metadata = draw(mutated_bytes(footer[:-8]))
        return pages + metadata + struct.pack("<I", len(metadata)) + footer[-4:]
    return pages + draw(mutated_bytes(footer))


@pytest.mark.parametrize("compression", ["snappy", "zstd", "none"])
def test_a_mutated_file_is_read_or_named(path: Path, tmp_path: Path, compression: str) -> None:
    table = pq.read_table(write_parquet(tmp_path / "whole.parquet", GOOD, LABELS))
    pq.write_table(table, path, compression=compression)
    content = path.read_bytes()

    @fuzz(150)
    @given(mutated_file(content) | st.binary(max_size=100).map(lambda b: b"PAR1" + b + b"PAR1"))
    @example(content)
    def mutate(content: bytes) -> None:
        path.write_bytes(content)
        check(path)

    mutate()


def test_a_file_with_checksums_is_read_right_or_named(path: Path, tmp_path: Path) -> None:
    table = pq.read_table(write_parquet(tmp_path / "whole.parquet", GOOD, LABELS))
    pq.write_table(table, path, write_page_checksum=True)
    content = path.read_bytes()
    size = 8 + struct.unpack("<I", content[-8:-4])[0]

    @fuzz(100)
    @given(mutated_bytes(content[:-size]))
    def mutate(pages: bytes) -> None:
        path.write_bytes(pages + content[-size:])
        try:
            images, labels = read(path)
        except DataError:
            return
        assert np.array_equal(images, IMAGES)
        assert labels.tolist() == LABELS

    mutate()


@fuzz(30)
@given(mutated_bytes(GOOD[1], most=2))
@example(GOOD[1])
def test_a_mutated_image_is_read_right_or_named_with_its_row(path: Path, image: bytes) -> None:
    write_parquet(path, [GOOD[0], image, GOOD[2]], LABELS)
    try:
        images, _ = read(path)
    except DataError as error:
        assert f"{path}: the image in row 1" in str(error)  # noqa: PT017 (or it is read)
        return
    assert np.array_equal(images, IMAGES)


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png(
    width: int = SIZE,
    height: int = SIZE,
    form: tuple[int, int, int, int, int] = (8, 2, 0, 0, 0),
    data: bytes | None = None,
    extra: bytes = b"",
) -> bytes:
    """A picture whose every checksum is right, whatever it says."""
    if data is None:
        data = zlib.compress(bytes(SIZE * (3 * SIZE + 1)))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, *form))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


sides = st.sampled_from([0, 1, 7, SIZE, 9, 10_000, 2**16, 2**31 - 1, 2**31, 2**32 - 1])
forms = st.tuples(
    st.sampled_from([1, 2, 4, 8, 16, 255]),
    st.sampled_from([0, 2, 3, 4, 6, 255]),
    *(st.sampled_from([0, 1, 255]) for _ in range(3)),
)
extras = st.sampled_from(
    [b""]
    + [chunk(name, bytes(5)) for name in (b"PLTE", b"tRNS", b"gAMA", b"acTL", b"fcTL", b"iCCP")]
    + [chunk(b"IHDR", struct.pack(">IIBBBBB", 2**16, 2**16, 8, 2, 0, 0, 0)), chunk(b"IEND", b"")]
)


@fuzz(75)
@given(sides, sides, forms | st.just((8, 2, 0, 0, 0)), extras)
@example(SIZE, SIZE, (8, 2, 0, 0, 0), b"")
def test_a_picture_that_says_what_cannot_be_is_named(
    path: Path, width: int, height: int, form: tuple[int, int, int, int, int], extra: bytes
) -> None:
    check(write_parquet(path, [png(width, height, form, extra=extra)], [0]))


def zeros(num_bytes: int) -> bytes:
    """So many zeros, compressed; they never lie in memory together."""
    packer = zlib.compressobj(1)
    block = bytes(2**20)
    return b"".join(packer.compress(block) for _ in range(num_bytes // len(block))) + packer.flush()


def in_another_format(name: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE)).save(buffer, name)
    return buffer.getvalue()


BOMB = zeros(2**28)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (png(60_000, 60_000), "DecompressionBombError"),
        (png(2**31 - 1, 2**31 - 1), "DecompressionBombError"),
        (png(10_000, 10_000, data=BOMB), "is RGB of 10000 x 10000 pixels"),
        (png(extra=chunk(b"zTXt", b"k\0\0" + BOMB)), "too large"),
        (png(extra=chunk(b"iCCP", b"k\0\0" + BOMB)), "too large"),
        (in_another_format("GIF"), "cannot be decoded"),
        (in_another_format("JPEG"), "cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "cannot be decoded"),
    ],
    ids=["large", "largest", "below the limit", "text", "profile", "gif", "jpeg", "postscript"],
)
def test_a_small_file_is_no_huge_image(path: Path, image: bytes, message: str) -> None:
    write_parquet(path, [image], [0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=rf"the image in row 0 .*{message}"):
        read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB: 128 MiB


def test_more_pixels_than_the_image_has_are_left_out(path: Path) -> None:
    write_parquet(path, [png(data=BOMB)], [0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not read(path)[0].any()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17


IMAGE = pa.array([{"bytes": content, "path": None} for content in GOOD])
LABEL = pa.array(LABELS)


@pytest.mark.parametrize(
    ("arrays", "names", "message"),
    [
        ([IMAGE, IMAGE, LABEL], ["img", "img", "label"], "has two columns 'img'"),
        ([IMAGE, LABEL, LABEL], ["img", "label", "label"], "has two columns 'label'"),
        (
            [pa.StructArray.from_arrays([IMAGE.field(0)] * 2, names=["bytes"] * 2), LABEL],
            ["img", "label"],
            "'img' must be a struct with binary 'bytes'",
        ),
        (
            [IMAGE, pa.array([0, 1, 2**64 - 1], pa.uint64())],
            ["img", "label"],
            f"the label in row 2 is {2**64 - 1}",
        ),
    ],
    ids=["two images", "two labels", "two bytes", "large label"],
)
def test_columns_that_come_twice_are_named(
    path: Path, arrays: list[pa.Array], names: list[str], message: str
) -> None:
    pq.write_table(pa.Table.from_arrays(arrays, names=names), path)
    with pytest.raises(DataError, match=message):
        read(path)


@fuzz(30)
@given(st.lists(st.integers(-3, 12) | st.sampled_from([n for n in HUGE if abs(n) < 2**63])))
def test_labels_are_classes_or_named(path: Path, labels: list[int]) -> None:
    write_parquet(path, [GOOD[0]] * len(labels), labels)
    if labels and all(0 <= label < 10 for label in labels):
        assert read(path)[1].tolist() == labels
    else:
        with pytest.raises(DataError, match=r"no rows|the label in row"):
            read(path)


@fuzz(20)
@given(st.data())
def test_a_data_set_is_whole_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    """The whole way of ``data.name = "cifar10"``, its cache included."""
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    good = [encoded(image) for image in random_images(2)]
    for split in ("train", "test"):
        path = write_parquet(tmp_path / f"{split}-0.parquet", good, [3, 4])
    path.write_bytes(data.draw(mutated_file(path.read_bytes())))
    for _ in range(2):
        try:
            found = cifar10(tmp_path)
        except DataError:
            continue
        assert np.array_equal(found.train.inputs.numpy(), random_images(2))
        assert found.num_classes == 10
