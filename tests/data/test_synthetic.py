"""Made-up samples, and the shelf that they stand on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ppll.checks import check_names
from ppll.config import Recipe
from ppll.data import Dataset, datasets, load_dataset
from ppll.errors import DataError, RecipeError
from ppll.sections import DataConfig


def synthetic(**options: Any) -> Dataset:
    return load_dataset(DataConfig(name="synthetic", **options))


def test_images_are_bytes_and_anything_else_floats() -> None:
    images = synthetic(shape=(2, 4, 5), num_train=20, num_test=10, num_classes=3)
    assert images.train.inputs.shape == (20, 2, 4, 5)
    assert images.train.inputs.dtype == torch.uint8
    assert images.num_classes == 3
    rows = synthetic(shape=(6,), num_train=20, num_test=10)
    assert rows.test.inputs.shape == (10, 6)
    assert rows.test.inputs.dtype == torch.float32


def test_same_samples_every_time_and_more_begin_with_the_same() -> None:
    first, second = synthetic(num_train=10), synthetic(num_train=30)
    assert torch.equal(first.train.inputs, second.train.inputs[:10])
    assert torch.equal(first.test.inputs, second.test.inputs)
    assert not torch.equal(first.train.inputs[:10], first.test.inputs[:10])


def nearest_mean_accuracy(dataset: Dataset) -> float:
    train, test = dataset.train.inputs.flatten(1).float(), dataset.test.inputs.flatten(1).float()
    means = torch.stack(
        [train[dataset.train.targets == c].mean(0) for c in range(dataset.num_classes)]
    )
    predicted = torch.cdist(test, means).argmin(1)
    return float((predicted == dataset.test.targets).float().mean())


def test_classes_can_be_told_apart_by_their_separation() -> None:
    assert nearest_mean_accuracy(synthetic()) > 0.9
    assert nearest_mean_accuracy(synthetic(separation=0)) < 0.3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_train": 0}, r"data\.num_train must be 1 or more, found 0"),
        ({"shape": ()}, r"data\.shape must be 1 or more"),
        ({"shape": (3, -1, 2)}, r"data\.shape must be 1 or more, found -1"),
        ({"num_classes": 0}, r"data\.num_classes"),
        ({"separation": -1}, r"data\.separation must be 0 or more, found -1"),
        ({"separation": float("nan")}, r"data\.separation"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        synthetic(**options)


def test_shelf_names_what_it_holds() -> None:
    expected = ["cifar10", "digits", "image-folder", "stdlib-text", "stl10", "svhn", "synthetic"]
    assert [entry.name for entry in datasets] == expected
    assert all(entry.summary for entry in datasets)


def test_unknown_name_and_option_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"unknown data set 'digit'\. Did you mean 'digits'"):
        load_dataset(DataConfig(name="digit"))
    with pytest.raises(RecipeError, match=r"data\..*num_trian.*num_train"):
        synthetic(num_trian=3)


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_a_root_is_refused_where_no_files_are_read(name: str) -> None:
    recipe = Recipe.from_dict({"data": {"name": name, "root": "somewhere"}})
    with pytest.raises(RecipeError, match=rf"data\.root = somewhere: .*'{name}' reads no files"):
        check_names(recipe, own_model=False)
    check_names(recipe.with_settings(["data.name=cifar10"]), own_model=False)
