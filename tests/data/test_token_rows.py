"""Rows of tokens with one class each: what is accepted, what is refused, and their batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from ppll.data import Dataset, Loader, load_dataset, prepare
from ppll.data.preparation import facts_of
from ppll.errors import DataError
from ppll.message import FEATURES, TARGETS
from ppll.sections import DataConfig

ROWS = np.array([[1, 4, 0], [2, 2, 5], [3, 1, 0], [6, 2, 1]])
CLASSES = [0, 1, 1, 0]


def given(rows: Any = ROWS, classes: Any = CLASSES, **numbers: Any) -> Dataset:
    return Dataset.from_arrays(train=(rows, classes), test=(ROWS[:2], CLASSES[:2]), **numbers)


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_whole_numbers_in_rows_are_tokens(kind: Any) -> None:
    rows = ROWS.astype(kind)
    found = Dataset.from_arrays(train=(rows, CLASSES), test=(rows[:1], CLASSES[:1]))
    assert (found.num_classes, found.num_tokens) == (2, 7)
    assert found.train.holds_tokens
    assert not found.train.predicts_tokens
    assert found.mean is found.std is None
    data = prepare(found, DataConfig(name="mine", batch_size=3))
    facts = facts_of(data)
    assert (facts.input_shape, facts.num_tokens, facts.predicts_tokens) == ((3,), 7, False)
    batch = Loader(data, seed=0).train_batch(0, 0)
    assert batch[FEATURES].dtype == batch[TARGETS].dtype == torch.int64
    assert (batch[FEATURES].shape, batch[TARGETS].shape) == ((3, 3), (3,))


def test_the_vocabulary_may_be_larger_than_what_is_found() -> None:
    assert given(num_tokens=np.int64(9)).num_tokens == 9
    assert given(num_classes=4).num_classes == 4


@pytest.mark.parametrize("largest", ["inputs", "targets"])
def test_the_tokens_that_follow_are_classes(largest: str) -> None:
    """Where none is given, the largest of them counts wherever it is."""
    part = (ROWS[:, :-1], ROWS[:, 1:]) if largest == "inputs" else (ROWS[:, 1:], ROWS[:, :-1])
    for numbers in ({}, {"num_classes": 7}, {"num_classes": 7, "num_tokens": 7}):
        found = Dataset.from_arrays(train=part, test=part, **numbers)
        assert found.num_tokens == found.num_classes
        assert found.train.predicts_tokens


@pytest.mark.parametrize(
    ("rows", "numbers", "words"),
    [
        (ROWS - 1, {}, r"token -1 of train sample 0 is not in the vocabulary: num_tokens = 6"),
        (ROWS.clip(0, 3), {"num_tokens": 5}, r"token 5 of test sample 1 .* which are 0 to 4\.$"),
        (ROWS, {"num_tokens": "many"}, r"num_tokens must be a number of different tokens.*'many'"),
        (ROWS, {"num_tokens": 0}, r"num_tokens must be a number of different tokens, found 0"),
        (ROWS.astype(np.int16), {}, r"rows of tokens \(N, T\) in uint8, int32 or int64.*int16"),
        (ROWS[:, None], {}, r"inputs must be .* found int64 of shape \(4, 1, 3\)"),
        (ROWS[:3], {}, r"there are 3 inputs but 4 targets"),
        (ROWS[:, :0], {}, r"inputs of shape \(4, 0\) are empty"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows: Any, numbers: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        given(rows, **numbers)


@pytest.mark.parametrize("width", [1, 2])
def test_columns_and_one_hot_rows_are_no_classes(width: int) -> None:
    classes = np.zeros((4, width), np.int64)
    with pytest.raises(DataError, match=r"one class index a sample, as by .*\[:, 0\].*argmax\(1\)"):
        given(classes=classes)
    with pytest.raises(DataError, match=r"one class index a sample, as by .*\[:, 0\].*argmax\(1\)"):
        given(ROWS.astype(np.float32), classes)


def test_what_has_no_vocabulary_of_its_own_takes_none() -> None:
    floats, text = (np.zeros((2, 3)), [0, 1]), (ROWS, ROWS)
    with pytest.raises(DataError, match=r"num_tokens = 5, but samples are float32 .*leave it out"):
        Dataset.from_arrays(train=floats, test=floats, num_tokens=5)
    with pytest.raises(DataError, match=r"num_tokens = 9, but targets are tokens.* = 7 of them"):
        Dataset.from_arrays(train=text, test=text, num_tokens=9)
    with pytest.raises(DataError, match="both have a target a token, or neither"):
        Dataset.from_arrays(train=text, test=(ROWS, CLASSES))


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    found = given(num_tokens=9)
    found.save(tmp_path / "data.safetensors")
    read = Dataset.load(tmp_path / "data.safetensors")
    assert read.equals(found)
    assert read.num_tokens == 9
    assert not read.equals(given(num_tokens=10))


def test_text_that_was_saved_without_its_vocabulary_is_read(tmp_path: Path) -> None:
    """As every run folder of a language model was written before classes and tokens parted."""
    part = (ROWS[:, 1:].copy(), ROWS[:, :-1].copy())
    found = Dataset.from_arrays(train=part, test=part)
    tensors = {
        f"{name}.{field}": torch.tensor(part[index])
        for name in ("train", "test")
        for index, field in enumerate(("inputs", "targets"))
    }
    facts = {"num_classes": 7, "mean": None, "std": None}
    file = tmp_path / "data.safetensors"
    safetensors.torch.save_file(tensors, file, {"ppll": json.dumps(facts)})
    assert Dataset.load(file).equals(found)


@pytest.mark.parametrize("key", ["crop", "flip", "randaugment", "cutout", "mixup", "cutmix"])
def test_what_only_images_have_is_refused(key: str) -> None:
    config = DataConfig(name="mine", batch_size=2, **{key: True if key == "flip" else 1})
    with pytest.raises(
        DataError, match=rf"data\.{key} needs images .* samples have the shape \(3,"
    ):
        prepare(given(), config)


def test_a_limit_that_leaves_classes_out_is_refused() -> None:
    data = given(classes=[0, 0, 1, 1])
    with pytest.raises(DataError, match=r"data\.train_limit = 2: .* of 1 of 2 classes"):
        prepare(data, DataConfig(name="mine", batch_size=2, train_limit=2))


def test_made_up_rows_have_classes_that_can_be_told_apart() -> None:
    options = {"shape": (12,), "num_tokens": 30, "num_classes": 3, "separation": 1.0}
    found = load_dataset(DataConfig(name="synthetic", **options))
    assert (found.num_tokens, found.num_classes, found.input_shape) == (30, 3, (12,))
    assert found.train.holds_tokens
    levels, targets = found.train.inputs.float(), found.train.targets
    means = torch.stack([levels[targets == index].mean(0) for index in range(3)])
    predicted = torch.cdist(found.test.inputs.float(), means).argmin(1)
    assert (predicted == found.test.targets).float().mean() > 0.9


@pytest.mark.parametrize(("shape", "num_tokens"), [((3, 4), 5), ((3,), -1)])
def test_made_up_tokens_lie_in_a_row(shape: tuple[int, ...], num_tokens: int) -> None:
    config = DataConfig(name="synthetic", shape=shape, num_tokens=num_tokens)
    with pytest.raises(DataError, match=rf"data\.num_tokens must be 0, .* found {num_tokens}"):
        load_dataset(config)
