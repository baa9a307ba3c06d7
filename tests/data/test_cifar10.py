"""CIFAR-10: where its files are looked for, what is wrong with them, and the real ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from ppll import data
from ppll.data import Dataset, load_dataset
from ppll.errors import DataError
from ppll.sections import DataConfig

from .conftest import encoded, random_images, write_parquet

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("PIL")


def load(root: Path | None = None) -> Dataset:
    return load_dataset(DataConfig(name="cifar10", root=root))


def write(path: Path, labels: Sequence[int], seed: int = 0) -> torch.Tensor:
    images = random_images(len(labels), seed=seed)
    write_parquet(path, [encoded(image) for image in images], labels)
    return torch.from_numpy(images)


@pytest.fixture(autouse=True)
def _no_shared_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PPLL_DATA", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "cifar10"
    write(folder / "train-00000-of-00001.parquet", [0, 9, 3], seed=1)
    write(folder / "test-00000-of-00001.parquet", [4, 5], seed=2)
    return folder


def test_images_and_labels_come_in_the_files_order(tmp_path: Path) -> None:
    second = write(tmp_path / "train-1.parquet", [4, 5], seed=2)
    first = write(tmp_path / "train-0.parquet", [0, 9, 3], seed=1)
    write(tmp_path / "test-0.parquet", [1])
    dataset = load(tmp_path)
    assert torch.equal(dataset.train.inputs, torch.cat([first, second]))
    assert dataset.train.targets.tolist() == [0, 9, 3, 4, 5]
    assert (dataset.num_classes, dataset.input_shape) == (10, (3, 32, 32))
    assert dataset.mean == (0.4914, 0.4822, 0.4465)


def test_second_load_decodes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(folder)
    monkeypatch.setitem(sys.modules, "ppll.data.parquet", None)  # an import would fail
    assert torch.equal(load(folder).train.inputs, first.train.inputs)


def test_root_may_be_the_folder_above(folder: Path) -> None:
    assert len(load(folder.parent).train) == 3


@pytest.mark.parametrize("above", [True, False])
def test_environment_names_the_folder(
    folder: Path, above: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPLL_DATA", str(folder.parent if above else folder))
    assert len(load().train) == 3


def test_root_without_files_says_where_was_looked(tmp_path: Path) -> None:
    looked = f"looked in {tmp_path} and in {tmp_path}/cifar10. Name the folder"
    with pytest.raises(DataError, match=looked):
        load(tmp_path)


def test_half_of_the_files_is_not_enough(folder: Path) -> None:
    (folder / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=rf"{folder} has no test-\*\.parquet"):
        load(folder)


def test_bad_label_is_found_in_its_file(folder: Path) -> None:
    write(folder / "train-00000-of-00001.parquet", [0, 10])
    with pytest.raises(DataError, match=r"train-.*: the label in row 1 is 10, allowed are 0 to 9"):
        load(folder)


def test_missing_reader_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ppll.data.parquet", raising=False)
    monkeypatch.delattr(data, "parquet", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs the package pyarrow.*'ppll\[datasets\]'"):
        load(folder)


def test_without_files_and_downloader_both_ways_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"PPLL_DATA is not set.*pip install 'ppll\[datasets\]'"):
        load()


class Hub(ModuleType):
    """Stands in for Hugging Face ``datasets``."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__("datasets")
        self.folder = folder
        self.asked: list[tuple[str, str]] = []

    def load_dataset(self, name: str, split: str) -> Hub:
        if self.folder is None:
            raise ConnectionError("no network")
        self.asked.append((name, split))
        return self

    def with_format(self, kind: str) -> Hub:
        assert kind == "arrow"
        return self

    def __getitem__(self, rows: slice) -> Any:
        assert self.folder is not None
        split = self.asked[-1][1]
        return pyarrow.parquet.read_table(self.folder / f"{split}-00000-of-00001.parquet")


def test_without_files_they_are_downloaded_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(folder)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert load().train.targets.tolist() == [0, 9, 3]
    assert torch.equal(load().test.inputs, load(folder).test.inputs)
    assert hub.asked == [("uoft-cs/cifar10", "train"), ("uoft-cs/cifar10", "test")]


def test_failed_download_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", Hub(None))
    with pytest.raises(DataError, match=r"The download failed: no network\."):
        load()


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
    write(tmp_path / "train-0.parquet", [0])
    test = load(tmp_path).test
    assert torch.bincount(test.targets).tolist() == [1000] * 10
    assert test.targets[:8].tolist() == [3, 8, 8, 0, 6, 6, 1, 6]  # as the original release has it
    mean = test.inputs.numpy().mean((0, 2, 3)) / 255
    np.testing.assert_allclose(mean, (0.4942, 0.4851, 0.4504), atol=1e-4)
