"""The published sets by every way that all of them share: where files are looked for, the hub."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ppll import data
from ppll.data import Dataset, load_dataset
from ppll.data.cifar10 import CIFAR10
from ppll.data.published import PublishedSet, content_of
from ppll.data.stl10 import STL10
from ppll.data.svhn import SVHN
from ppll.errors import DataError
from ppll.sections import DataConfig

from .conftest import encoded, random_images, write_parquet
from .official import binary, matlab

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("PIL")

SETS = {published.name: published for published in (CIFAR10, SVHN, STL10)}


@pytest.fixture(params=SETS)
def published(request: pytest.FixtureRequest) -> PublishedSet:
    return SETS[request.param]


def load(published: PublishedSet, root: Path | None = None) -> Dataset:
    return load_dataset(DataConfig(name=published.name, root=root))


def write(published: PublishedSet, path: Path, labels: Sequence[int], seed: int = 0) -> Any:
    images = random_images(len(labels), size=published.columns.size[0], seed=seed)
    content = [encoded(image) for image in images]
    write_parquet(path, content, labels, name=published.columns.image)
    return torch.from_numpy(images)


@pytest.fixture(autouse=True)
def _no_shared_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PPLL_DATA", raising=False)


@pytest.fixture
def folder(published: PublishedSet, tmp_path: Path) -> Path:
    folder = tmp_path / "data" / published.name
    write(published, folder / "train-00000-of-00001.parquet", [0, 9, 3], seed=1)
    write(published, folder / "test-00000-of-00001.parquet", [4, 5], seed=2)
    return folder


def test_images_and_labels_come_in_the_files_order(published: PublishedSet, tmp_path: Path) -> None:
    second = write(published, tmp_path / "train-1.parquet", [4, 5], seed=2)
    first = write(published, tmp_path / "train-0.parquet", [0, 9, 3], seed=1)
    write(published, tmp_path / "test-0.parquet", [1])
    dataset = load(published, tmp_path)
    assert torch.equal(dataset.train.inputs, torch.cat([first, second]))
    assert dataset.train.targets.tolist() == [0, 9, 3, 4, 5]
    side = published.columns.size[0]
    assert (dataset.num_classes, dataset.input_shape) == (10, (3, side, side))
    assert (dataset.mean, dataset.std) == (published.mean, published.std)


def test_second_load_decodes_nothing(
    published: PublishedSet, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(published, folder)
    monkeypatch.setitem(sys.modules, "ppll.data.parquet", None)  # an import would fail
    assert torch.equal(load(published, folder).train.inputs, first.train.inputs)


def test_root_may_be_the_folder_above(published: PublishedSet, folder: Path) -> None:
    assert len(load(published, folder.parent).train) == 3


def test_files_may_lie_as_on_the_hub(published: PublishedSet, folder: Path) -> None:
    below = folder / published.hub_folder
    below.mkdir()
    for file in list(folder.glob("*.parquet")):
        file.rename(below / file.name)
    assert len(load(published, folder).train) == 3


@pytest.mark.parametrize("above", [True, False])
def test_environment_names_the_folder(
    published: PublishedSet, folder: Path, above: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPLL_DATA", str(folder.parent if above else folder))
    assert len(load(published).train) == 3


def test_a_root_that_is_not_there_is_named(published: PublishedSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"nowhere is not there: .* files of {published.name}"):
        load(published, tmp_path / "nowhere")


def test_without_files_is_said_what_was_looked_for_and_where(
    published: PublishedSet, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        load(published, tmp_path)
    message = str(caught.value)
    assert f"looked in {tmp_path} and in {tmp_path}/{published.name}. Name the folder" in message
    names = [name for layout in published.official for name in layout.train + layout.test]
    assert all(name in message for name in ["train-*.parquet", "test-*.parquet", *names])
    assert published.hub in message


def test_half_of_the_files_is_not_enough(published: PublishedSet, folder: Path) -> None:
    (folder / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=rf"{folder} has no test-\*\.parquet"):
        load(published, folder)


def test_some_of_a_table_s_files_are_not_enough(published: PublishedSet, folder: Path) -> None:
    whole = folder / "train-00000-of-00001.parquet"
    whole.rename(folder / "train-00001-of-00002.parquet")
    with pytest.raises(DataError, match=rf"{folder} has no train-00000-of-00002\.parquet: put it"):
        load(published, folder)
    write(published, folder / "train-00000-of-00002.parquet", [7], seed=3)
    assert load(published, folder).train.targets.tolist() == [7, 0, 9, 3]
    write(published, whole, [7, 0, 9, 3])
    with pytest.raises(DataError, match=r"the same twice, .*00000-of-00001.*00001-of-00002"):
        load(published, folder)


def replaced(path: Path, kind: str) -> None:
    """Put something else in the place of a file."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_regular_file_is_refused(
    kind: str, published: PublishedSet, folder: Path, tmp_path: Path
) -> None:
    replaced(folder / "train-00000-of-00001.parquet", kind)
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet is no regular file"):
        load(published, folder)
    for layout in published.official:
        for name in {*layout.train, *layout.test}:
            replaced(tmp_path / name, kind)
        with pytest.raises(DataError, match="is no regular file"):
            load(published, tmp_path)
        for name in {*layout.train, *layout.test}:
            path = tmp_path / name
            path.rmdir() if kind == "folder" else path.unlink()


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    replaced(tmp_path / "x", kind)
    with pytest.raises(DataError, match="cannot be read: it is no regular file"):
        content_of(tmp_path / "x")
    (tmp_path / "y").write_bytes(b"y")
    (tmp_path / "link").symlink_to(tmp_path / "y")
    assert content_of(tmp_path / "link") == b"y"


def test_bad_label_is_found_in_its_file(published: PublishedSet, folder: Path) -> None:
    write(published, folder / "train-00000-of-00001.parquet", [0, 10])
    with pytest.raises(DataError, match=r"train-.*: the label in row 1 is 10, allowed are 0 to 9"):
        load(published, folder)


def test_missing_reader_is_named(
    published: PublishedSet, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "ppll.data.parquet", raising=False)
    monkeypatch.delattr(data, "parquet", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        DataError, match=r"needs the package pyarrow.*pip install 'pyarrow>=14' 'pillow>=10'"
    ):
        load(published, folder)


def test_without_files_and_downloader_both_ways_are_named(
    published: PublishedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        DataError, match=r"PPLL_DATA is not set.*pip install 'datasets>=2\.19' 'pillow>=10'"
    ):
        load(published)


class Hub(ModuleType):
    """Stands in for Hugging Face ``datasets``."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__("datasets")
        self.folder = folder
        self.asked: list[tuple[str, dict[str, str]]] = []

    def load_dataset(
        self, name: str, *, data_files: dict[str, str], split: str, verification_mode: str
    ) -> Hub:
        if self.folder is None:
            raise ConnectionError("no network")
        assert list(data_files) == [split]
        assert verification_mode == "no_checks"  # it would miss what is not asked for
        self.asked.append((name, data_files))
        return self

    def with_format(self, kind: str) -> Hub:
        assert kind == "arrow"
        return self

    def __getitem__(self, rows: slice) -> Any:
        assert self.folder is not None
        ((split, _),) = self.asked[-1][1].items()
        return pyarrow.parquet.read_table(self.folder / f"{split}-00000-of-00001.parquet")


def test_without_files_they_are_downloaded_once(
    published: PublishedSet, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(folder)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert load(published).train.targets.tolist() == [0, 9, 3]
    assert torch.equal(load(published).test.inputs, load(published, folder).test.inputs)
    assert hub.asked == [
        (published.hub, {split: f"{published.hub_folder}/{split}-*.parquet"})
        for split in ("train", "test")
    ]


def test_failed_download_says_so(published: PublishedSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", Hub(None))
    with pytest.raises(DataError, match=r"The download failed: no network\."):
        load(published)


# Official files, of the two sets that have no digests


def as_matlab(images: Any, labels: Sequence[int], split: str) -> dict[str, bytes]:
    return {f"{split}_32x32.mat": matlab(images, labels)}


def as_binary(images: Any, labels: Sequence[int], split: str) -> dict[str, bytes]:
    return dict(zip((f"{split}_X.bin", f"{split}_y.bin"), binary(images, labels), strict=True))


@pytest.mark.parametrize(("published", "form"), [(SVHN, as_matlab), (STL10, as_binary)])
@pytest.mark.parametrize("below", [True, False])
def test_official_files_are_found_and_decoded_once(
    published: PublishedSet,
    form: Callable[[Any, Sequence[int], str], dict[str, bytes]],
    below: bool,
    tmp_path: Path,
    cache: Path,
) -> None:
    folder = tmp_path / "data" / (published.official[0].folder if below else "")
    folder.mkdir(parents=True, exist_ok=True)
    images = {"train": random_images(4, size=published.columns.size[0]), "test": None}
    images["test"] = images["train"][:1]
    for split, labels in (("train", [0, 9, 3, 1]), ("test", [0])):
        for name, content in form(images[split], labels, split).items():
            (folder / name).write_bytes(content)
    for _ in range(2):
        dataset = load(published, tmp_path / "data")
        assert torch.equal(dataset.train.inputs, torch.from_numpy(images["train"]))
        assert torch.equal(dataset.test.inputs, torch.from_numpy(images["test"]))
        assert dataset.train.targets.tolist() == [0, 9, 3, 1]
    assert len(list(cache.iterdir())) == 1
    (folder / published.official[0].test[0]).unlink()
    with pytest.raises(DataError, match=rf"has no {published.official[0].test[0]}"):
        load(published, tmp_path / "data")
