"""CIFAR-10's official batches and archive, and the real images."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ppll.data import load_dataset
from ppll.data.cifar10 import CIFAR10, read_archive, read_batches
from ppll.data.sources import load_published
from ppll.errors import DataError
from ppll.sections import DataConfig

from .conftest import encoded, random_images, write_parquet
from .official import md5, pickled_batch, write_archive

NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
LABELS = {name: [index, 9] for index, name in enumerate(NAMES)}
BATCHES = {
    name: pickled_batch(random_images(2, seed=index), LABELS[name])
    for index, name in enumerate(NAMES)
}
EXPECTED = np.concatenate([random_images(2, seed=seed) for seed in range(5)])


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """The five batches of the training part, and beside them the one of the test part."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, content in BATCHES.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in NAMES[:5]]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "cifar-10-python.tar.gz", {"readme.html": b"x", **BATCHES})


def digests(archive: Path) -> dict[str, str]:
    return md5({**BATCHES, archive.name: archive.read_bytes()})


def test_batches_are_read_exactly_and_in_order(files: list[Path]) -> None:
    images, labels = read_batches(files, "train", md5(BATCHES))
    assert np.array_equal(images, EXPECTED)
    assert labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)


def test_an_archive_is_read_in_the_same_order_whatever_its_own(tmp_path: Path) -> None:
    backwards = dict(reversed(BATCHES.items()))
    archive = write_archive(tmp_path / "cifar-10-python.tar.gz", backwards)
    images, labels = read_archive([archive], "train", digests(archive))
    assert np.array_equal(images, EXPECTED)
    assert labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert read_archive([archive], "test", digests(archive))[1].tolist() == [5, 9]


def test_the_official_digests_are_asked_for(tmp_path: Path, files: list[Path]) -> None:
    found = r"has the MD5 [0-9a-f]{32}, but the official file has"
    with pytest.raises(DataError, match=f"data_batch_1 {found} c99cafc152244af753f735de768cd75f"):
        load_dataset(DataConfig(name="cifar10", root=tmp_path))
    archive = write_archive(tmp_path / "cifar-10-python.tar.gz", BATCHES)
    with pytest.raises(DataError, match=f"gz {found} c58f30108f718f92721af3b95e74349a"):
        read_archive([archive], "train")


def _byte(content: bytes) -> bytes:
    return content[:-100] + b"x" + content[-99:]


def _nothing(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [_byte, _nothing])
def test_nothing_is_read_of_another_file(
    files: list[Path],
    archive: Path,
    damage: Callable[[bytes], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = digests(archive)
    for file in (files[2], archive):
        file.write_bytes(damage(file.read_bytes()))
    monkeypatch.setattr(tarfile, "open", None)  # a call would fail
    with pytest.raises(DataError, match="data_batch_3 has the MD5"):
        read_batches(files, "train", expected)
    with pytest.raises(DataError, match=r"tar\.gz has the MD5 .*: fetch it again"):
        read_archive([archive], "train", expected)


def test_a_batch_of_the_archive_has_a_digest_of_its_own(archive: Path) -> None:
    expected = {**digests(archive), "data_batch_2": "0" * 32}
    with pytest.raises(DataError, match=r"tar\.gz/data_batch_2 has the MD5"):
        read_archive([archive], "train", expected)


def test_archive_that_lacks_a_batch_or_is_none_is_named(tmp_path: Path) -> None:
    some = {name: BATCHES[name] for name in NAMES[:3]}
    archive = write_archive(tmp_path / "cifar-10-python.tar.gz", some)
    with pytest.raises(DataError, match=r"tar\.gz holds no cifar-10-batches-py/data_batch_4"):
        read_archive([archive], "train", digests(archive))
    archive.write_text("a page that says 404")
    with pytest.raises(DataError, match=r"tar\.gz cannot be read .*: fetch it again"):
        read_archive([archive], "train", digests(archive))
    archive.unlink()
    with pytest.raises(DataError, match=r"tar\.gz cannot be read"):
        read_archive([archive], "train", {})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x80\2}.", "must hold 'data'"),
        (pickled_batch(random_images(2), [1]), "has 2 images and 1 labels"),
        (pickled_batch(random_images(0), []), "has 0 images"),
        (pickled_batch(random_images(1), [10]), "label 0 is 10, allowed are 0 to 9"),
        (pickled_batch(random_images(1), [-1]), "label 0 is -1"),
        (pickled_batch(random_images(1, size=16), [1]), "is not a whole pickle"),
        (b"\x80\2cos\nsystem\nU\4true\x85R.", "would call 'os system'"),
    ],
)
def test_a_batch_that_holds_something_else_is_named(
    files: list[Path], content: bytes, words: str
) -> None:
    files[0].write_bytes(content)
    with pytest.raises(DataError, match=rf"data_batch_1:? {words}"):
        read_batches(files[:1], "train", md5({"data_batch_1": content}))


@pytest.mark.parametrize("kind", ["batches", "archive"])
def test_official_files_are_found_and_decoded_once(
    tmp_path: Path, cache: Path, kind: str, files: list[Path], archive: Path
) -> None:
    layouts = [
        replace(layout, read=partial(layout.read, md5=digests(archive)))
        for layout in CIFAR10.official
    ]
    if kind == "archive":
        for file in files:
            file.unlink()
        (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    published = replace(CIFAR10, official=tuple(layouts))
    for _ in range(2):
        dataset = load_published(published, tmp_path)
        assert torch.equal(dataset.train.inputs, torch.from_numpy(EXPECTED))
        assert dataset.test.targets.tolist() == [5, 9]
    assert len(list(cache.iterdir())) == 1


def test_a_missing_batch_is_named(tmp_path: Path, files: list[Path]) -> None:
    files[3].unlink()
    with pytest.raises(DataError, match="has no data_batch_4: put it beside the others"):
        load_dataset(DataConfig(name="cifar10", root=tmp_path))


def real_folder() -> Path | None:
    """The whole CIFAR-10, where this machine has it."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    for folder in (Path(os.environ.get("PPLL_DATA") or beside), beside):
        if list((folder / "cifar10").glob("test-*.parquet")):
            return folder / "cifar10"
    return None


REAL_FOLDER = real_folder()


@pytest.mark.skipif(REAL_FOLDER is None, reason="no CIFAR-10 in PPLL_DATA or ../shared/data")
def test_real_test_images(tmp_path: Path) -> None:
    assert REAL_FOLDER is not None
    for file in REAL_FOLDER.glob("test-*.parquet"):
        (tmp_path / file.name).symlink_to(file)
    image = encoded(random_images(1)[0])
    write_parquet(tmp_path / "train-0.parquet", [image], [0])
    test = load_dataset(DataConfig(name="cifar10", root=tmp_path)).test
    assert torch.bincount(test.targets).tolist() == [1000] * 10
    assert test.targets[:8].tolist() == [3, 8, 8, 0, 6, 6, 1, 6]  # as the original release has it
    mean = test.inputs.numpy().mean((0, 2, 3)) / 255
    np.testing.assert_allclose(mean, (0.4942, 0.4851, 0.4504), atol=1e-4)
