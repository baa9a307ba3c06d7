"""The digits of scikit-learn."""

from __future__ import annotations

import sys
from importlib import metadata

import numpy as np
import pytest
import torch

from ppll.data import load_dataset
from ppll.errors import DataError
from ppll.sections import DataConfig


def test_all_digits_are_there() -> None:
    dataset = load_dataset(DataConfig(name="digits"))
    assert (len(dataset.train), len(dataset.test)) == (1437, 360)
    assert (dataset.input_shape, dataset.num_classes) == ((1, 8, 8), 10)
    assert dataset.train.inputs.dtype == torch.uint8
    assert np.unique(dataset.train.inputs).tolist() == [round(i * 255 / 16) for i in range(17)]


def test_parts_are_the_same_for_good() -> None:
    dataset = load_dataset(DataConfig(name="digits"))
    assert dataset.test.targets[:10].tolist() == [6, 9, 2, 9, 2, 3, 9, 9, 1, 1]
    assert int(dataset.test.inputs.sum()) == 1780667
    assert torch.bincount(dataset.test.targets).min() >= 30


def test_scikit_learn_is_imported_once_only(monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_dataset(DataConfig(name="digits"))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # an import would fail
    second = load_dataset(DataConfig(name="digits"))
    assert torch.equal(first.train.inputs, second.train.inputs)


def test_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(DataError, match=r"scikit-learn, .* pip install 'scikit-learn>=1\.3'"):
        load_dataset(DataConfig(name="digits"))


def test_broken_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'scikit-learn>=1\.3'"):
        load_dataset(DataConfig(name="digits"))
