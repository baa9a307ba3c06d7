"""Limits, the validation part, and what is refused before a run begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppll.data import Dataset, PreparedData, prepare
from ppll.data.preparation import facts_of, hold_out
from ppll.errors import DataError
from ppll.sections import DataConfig


def prepared(num_train: int = 100, **config: Any) -> PreparedData:
    x = torch.zeros(num_train, 1, 6, 8, dtype=torch.uint8)
    y = torch.arange(num_train) % 5
    dataset = Dataset.from_arrays(train=(x, y), test=(x, y))
    return prepare(dataset, DataConfig(**{"batch_size": 10, **config}))


def test_everything_is_learned_from_unless_asked_otherwise() -> None:
    data = prepared()
    assert data.train_samples.tolist() == list(range(100))
    assert data.splits == ("test",)


@pytest.mark.parametrize(("validation", "number"), [(0.2, 20), (7, 7), (1, 1), (0.004, 0)])
def test_validation_is_a_share_or_a_number(validation: float, number: int) -> None:
    if number == 0:
        with pytest.raises(DataError, match=r"0\.004 of 100 training samples is less than one"):
            prepared(validation=validation)
        return
    data = prepared(validation=validation)
    assert len(data.validation_samples) == number
    assert data.splits == ("validation", "test")
    assert sorted([*data.train_samples, *data.validation_samples]) == list(range(100))


def test_limit_comes_before_the_validation_part() -> None:
    data = prepared(train_limit=40, validation=0.25)
    assert len(data.train_samples) == 30
    assert max(*data.train_samples, *data.validation_samples) == 39


def test_test_samples_are_limited_by_themselves() -> None:
    data = prepared(test_limit=40, validation=10)
    assert (len(data.train_samples), len(data.validation_samples)) == (90, 10)
    assert data.dataset.test.targets.tolist() == [index % 5 for index in range(40)]
    assert facts_of(data).num_test == 40


def test_limit_above_what_there_is_changes_nothing() -> None:
    assert len(prepared(train_limit=1000).train_samples) == 100
    assert len(prepared(test_limit=1000).dataset.test) == 100


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_the_first_samples_of_what_lies_class_by_class_are_refused(
    order: list[int], part: str
) -> None:
    images, labels = torch.zeros(30, 1, 6, 8), torch.tensor(order).repeat_interleave(10)
    dataset = Dataset.from_arrays(train=(images, labels), test=(images, labels))

    def limited(limit: int) -> PreparedData:
        return prepare(dataset, DataConfig(batch_size=10, **{f"{part}_limit": limit}))

    with pytest.raises(DataError, match=rf"{part}_limit = 20: .* first 20 are of 2 of 3 classes"):
        limited(20)
    assert limited(21).train_samples.size == (21 if part == "train" else 30)


def test_the_first_samples_may_be_of_a_class_each() -> None:
    part = (torch.zeros(8, 3), torch.arange(8))
    dataset = Dataset.from_arrays(train=part, test=part)
    assert len(prepare(dataset, DataConfig(batch_size=2, test_limit=5)).dataset.test) == 5


@given(st.integers(1, 300), st.data())
def test_held_out_part_grows_by_adding(num_samples: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, num_samples))
    kept, held_out = hold_out(num_samples, number, "validation")
    assert np.array_equal(np.sort(np.concatenate([kept, held_out])), np.arange(num_samples))
    assert len(held_out) == number
    if number:
        fewer = hold_out(num_samples, number - 1, "validation")[1]
        assert set(fewer) < set(held_out)


def test_held_out_part_depends_on_nothing_but_index_and_purpose() -> None:
    # A change of these numbers changes what every reported validation accuracy means.
    expected = [263, 502, 627, 695, 855]
    assert hold_out(1000, 5, "validation")[1].tolist() == expected
    assert hold_out(1000, 5, "another")[1].tolist() != expected


@pytest.mark.parametrize(
    ("size", "drop_last", "steps"),
    [(10, False, 10), (30, False, 4), (30, True, 3), (100, True, 1), (100, False, 1)],
)
def test_steps_per_epoch(size: int, drop_last: bool, steps: int) -> None:
    assert prepared(batch_size=size, drop_last=drop_last).steps_per_epoch == steps


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"batch_size": 101}, "batch_size = 101, .* only 100 training samples: choose 1 to 100"),
        ({"batch_size": 91, "validation": 10}, "only 90 training samples"),
        ({"batch_size": 11, "train_limit": 10}, "only 10 training samples"),
        ({"validation": 100}, "validation = 100 leaves none of 100 .* choose at most 99"),
        ({"validation": 0.999}, "validation = 0.999 leaves none of 100"),
        ({"crop": 6}, "crop = 6 could cut a whole image away, .* choose 0 to 5"),
        ({"cutout": 6}, "cutout = 6 could paint a whole image over, .* choose 0 to 5"),
    ],
)
def test_recipe_that_does_not_fit_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        prepared(**config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("crop", 2), ("flip", True), ("randaugment", 9)],
        *[("cutout", 1), ("mixup", 0.2), ("cutmix", 1.0)],
    ],
)
def test_augmentation_needs_images(key: str, value: Any) -> None:
    rows = (torch.zeros(20, 3), torch.zeros(20).long())
    dataset = Dataset.from_arrays(train=rows, test=rows)
    with pytest.raises(DataError, match=rf"data\.{key} needs images .* shape \(3,\)"):
        prepare(dataset, DataConfig(batch_size=2, **{key: value}))


def test_randaugment_needs_bytes() -> None:
    images = (torch.zeros(20, 1, 4, 4), torch.zeros(20).long())
    dataset = Dataset.from_arrays(train=images, test=images)
    with pytest.raises(DataError, match=r"data\.randaugment needs images in bytes, .* torch"):
        prepare(dataset, DataConfig(batch_size=2, randaugment=1))
