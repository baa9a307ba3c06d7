"""Batches: what is in them, in what order, and that nothing but seed, epoch and place counts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ppll.data import Dataset, Loader, load_batches, prepare
from ppll.data.augmentation import Normalisation
from ppll.data.loader import epoch_order
from ppll.message import ALIGNMENT
from ppll.sections import DataConfig

NUM_TRAIN, NUM_TEST = 50, 23


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Images whose label is their index, so that a batch tells what is in it."""
    numbers = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (NUM_TRAIN, 3, 5, 7), dtype=torch.uint8, generator=numbers)
    y = torch.arange(NUM_TRAIN)
    return Dataset.from_arrays(train=(x, y), test=(x[:NUM_TEST], y[:NUM_TEST]))


def loader(
    dataset: Dataset, *, seed: int = 0, fields: tuple[str, ...] = (), **config: Any
) -> Loader:
    prepared = prepare(dataset, DataConfig(**{"batch_size": 8, **config}))
    return Loader(prepared, seed=seed, fields=fields)


def targets(batches: Loader, epoch: int) -> list[list[int]]:
    return [
        batches.train_batch(epoch, index)["targets"].tolist()
        for index in range(batches.steps_per_epoch)
    ]


def assert_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@given(st.integers(0, 2**32), st.integers(0, 1000), st.integers(1, 200))
def test_order_is_a_permutation_that_survives_leaving_out(
    seed: int, epoch: int, number: int
) -> None:
    samples = np.arange(number)
    order = epoch_order(samples, seed=seed, epoch=epoch)
    assert np.array_equal(np.sort(order), samples)
    some = epoch_order(samples[::2], seed=seed, epoch=epoch)
    assert np.array_equal(some, order[order % 2 == 0])


def test_order_changes_with_seed_and_epoch() -> None:
    orders = [
        tuple(epoch_order(np.arange(30), seed=seed, epoch=epoch))
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9


def test_epoch_holds_every_sample_once(dataset: Dataset) -> None:
    found = targets(loader(dataset), 0)
    assert [len(batch) for batch in found] == [8] * 6 + [2]
    assert sorted(sum(found, [])) == list(range(NUM_TRAIN))  # noqa: RUF017
    assert found != targets(loader(dataset), 1)
    assert found != targets(loader(dataset, seed=1), 0)


def test_drop_last_leaves_out_the_batch_that_is_not_full(dataset: Dataset) -> None:
    assert targets(loader(dataset, drop_last=True), 0) == targets(loader(dataset), 0)[:-1]


def test_batch_is_the_same_whenever_it_is_asked_for(dataset: Dataset) -> None:
    places = [(1, 3), (0, 0), (1, 2), (0, 6), (1, 3)]
    options: dict[str, Any] = {"crop": 2, "flip": True, "fields": ("image",)}
    batches = loader(dataset, **options)
    for epoch, index in places:
        expected = loader(dataset, **options).train_batch(epoch, index)
        assert_same(batches.train_batch(epoch, index), expected)


def test_crops_depend_neither_on_batch_size_nor_on_a_validation_part(dataset: Dataset) -> None:
    def by_sample(**config: Any) -> dict[int, Tensor]:
        batches = loader(dataset, crop=2, flip=True, **config)
        fields = [batches.train_batch(1, index) for index in range(batches.steps_per_epoch)]
        return {
            int(target): features
            for batch in fields
            for target, features in zip(batch["targets"], batch["features"], strict=True)
        }

    whole = by_sample()
    for other in (by_sample(batch_size=11), by_sample(validation=10), by_sample(train_limit=20)):
        assert all(torch.equal(features, whole[sample]) for sample, features in other.items())


@pytest.mark.parametrize("index", [-1, 7])
def test_batch_that_an_epoch_has_not_is_refused(dataset: Dataset, index: int) -> None:
    with pytest.raises(IndexError, match=f"batch {index} of 7"):
        loader(dataset).train_batch(0, index)


def test_evaluation_is_in_order_and_unchanged(dataset: Dataset) -> None:
    batches = loader(dataset, crop=2, flip=True, validation=10)
    assert batches.splits == ("validation", "test")
    found = list(batches.evaluation_batches("test"))
    assert [len(batch["targets"]) for batch in found] == [8, 8, 7]
    assert torch.cat([batch["targets"] for batch in found]).tolist() == list(range(NUM_TEST))
    assert dataset.mean is not None
    assert dataset.std is not None
    expected = Normalisation(dataset.mean, dataset.std)(dataset.test.inputs)
    assert torch.equal(torch.cat([batch["features"] for batch in found]), expected)


def test_validation_holds_what_is_not_learned_from(dataset: Dataset) -> None:
    batches = loader(dataset, validation=0.2, eval_batch_size=4)
    found = list(batches.evaluation_batches("validation"))
    assert [len(batch["targets"]) for batch in found] == [4, 4, 2]
    held_out = torch.cat([batch["targets"] for batch in found]).tolist()
    learned = sum(targets(batches, 0), [])  # noqa: RUF017
    assert sorted(held_out + learned) == list(range(NUM_TRAIN))


def test_image_is_the_augmented_input_in_bytes(dataset: Dataset) -> None:
    batches = loader(dataset, crop=2, flip=True, fields=("image", "of another"))
    batch = batches.train_batch(0, 0)
    assert batch.keys() == {"features", "targets", "image"}
    assert batch["image"].dtype == torch.uint8
    assert dataset.mean is not None
    assert dataset.std is not None
    assert torch.equal(batch["features"], Normalisation(dataset.mean, dataset.std)(batch["image"]))
    assert "image" in next(batches.evaluation_batches("test"))


@pytest.mark.parametrize("crop", [0, 2])
def test_tensors_are_dense_and_aligned_whatever_the_data_set(dataset: Dataset, crop: int) -> None:
    odd = dataset.train.inputs.to(memory_format=torch.channels_last)[1:]
    moved = Dataset.from_arrays(
        train=(odd, dataset.train.targets[1:]), test=(odd, dataset.train.targets[1:])
    )
    batches = loader(moved, crop=crop, fields=("image",))
    for batch in (batches.train_batch(0, 0), *batches.evaluation_batches("test")):
        for tensor in batch.values():
            assert tensor.is_contiguous()
            assert tensor.data_ptr() % ALIGNMENT == 0


def test_changing_a_batch_changes_no_data(dataset: Dataset) -> None:
    x, y = torch.rand(16, 3), torch.arange(16)
    floats = Dataset.from_arrays(train=(x, y), test=(x, y))
    before = x.clone()
    batches = loader(floats)
    for batch in (batches.train_batch(0, 0), *batches.evaluation_batches("test")):
        batch["features"].zero_()
        batch["targets"].zero_()
    assert torch.equal(x, before)
    assert torch.equal(y, torch.arange(16))


def test_floats_go_through_as_they_are() -> None:
    x, y = torch.rand(16, 3, 2), torch.arange(16)
    batches = loader(Dataset.from_arrays(train=(x, y), test=(x, y)))
    batch = batches.train_batch(0, 1)
    assert torch.equal(batch["features"], x[batch["targets"]])


def test_default_generator_is_not_touched(dataset: Dataset) -> None:
    before = torch.get_rng_state()
    batches = loader(dataset, crop=2, flip=True, validation=10)
    batches.train_batch(0, 0)
    list(batches.evaluation_batches("validation"))
    assert torch.equal(before, torch.get_rng_state())


def test_batches_of_a_recipe_or_of_a_file(tmp_path: Path, dataset: Dataset) -> None:
    config = DataConfig.model_validate({"name": "synthetic", "shape": [4], "batch_size": 16})
    assert load_batches(config, seed=0).train_batch(0, 0)["features"].shape == (16, 4)
    dataset.save(tmp_path / "data.safetensors")
    own = load_batches(config, seed=0, user_data=tmp_path / "data.safetensors", fields=("image",))
    assert own.train_batch(0, 0)["image"].shape == (16, 3, 5, 7)
