"""Mixup and cutmix: the distribution of the shares, and every pixel against a slow reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppll.data import Dataset, Loader, prepare
from ppll.data.augmentation import Normalisation
from ppll.data.augmentation.mixing import mix, symmetric_beta
from ppll.randomness import fold, uniform_integers
from ppll.sections import DataConfig
from tests.data.augmentation.applied import augment, weights_of

NUM_TRAIN = 33
HEIGHT, WIDTH = 5, 7
MIXES: list[dict[str, Any]] = [
    {"mixup": 0.4},
    {"cutmix": 1.0},
    {"mixup": 0.4, "cutmix": 1.0},
    {"mixup": 1.0, "crop": 1, "flip": True, "cutout": 3},
]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Images whose label is their index, so that a batch tells what is in it."""
    numbers = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (NUM_TRAIN, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=numbers)
    y = torch.arange(NUM_TRAIN)
    return Dataset.from_arrays(train=(x, y), test=(x, y))


def loader(dataset: Dataset, *, fields: tuple[str, ...] = ("image",), **config: Any) -> Loader:
    return Loader(
        prepare(dataset, DataConfig(**{"batch_size": 8, **config})), seed=3, fields=fields
    )


def epoch_of(batches: Loader, epoch: int = 2) -> dict[str, Tensor]:
    """All batches of an epoch in one."""
    parts = [batches.train_batch(epoch, index) for index in range(batches.steps_per_epoch)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def distribution(alpha: float, x: np.ndarray) -> np.ndarray:
    """Of Beta(alpha, alpha), where it has a closed form."""
    return {
        0.5: 2 / np.pi * np.arcsin(np.sqrt(x)),
        1.0: x,
        2.0: 3 * x**2 - 2 * x**3,
    }[alpha]


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_shares_have_the_beta_distribution(alpha: float) -> None:
    """The largest distance of both curves; 1.63 / sqrt(N) is passed by one in a hundred."""
    number = 20_000
    found = np.sort(symmetric_beta(1, np.arange(number), alpha))
    distance = np.abs(distribution(alpha, found) - (np.arange(number) + 0.5) / number).max()
    assert distance < 1.63 / number**0.5


@pytest.mark.parametrize("alpha", [1e-300, 0.01, 0.2, 0.8, 5.0, 1e300])
def test_shares_of_any_alpha_have_the_mean_and_the_variance(alpha: float) -> None:
    found = symmetric_beta(7, np.arange(20_000), alpha)
    assert 0 <= found.min() <= found.max() <= 1
    assert found.mean() == pytest.approx(0.5, abs=0.012)
    assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def reference_weight(sample: int, y: int, x: int, *, mixup: float = 0, cutmix: float = 0) -> float:
    """One pixel of one sample of epoch 2 with seed 3."""
    key, one = fold(3, "mix", 2), np.array([sample])

    def integer(name: str, high: int) -> int:
        return int(uniform_integers(fold(key, name), one, high)[0])

    cuts = bool(cutmix) and (not mixup or integer("which", 2) == 1)
    if not cuts:
        share = symmetric_beta(fold(key, "mixup"), one, mixup)[0]
        return float(max(share, 1 - share))
    share = symmetric_beta(fold(key, "cutmix"), one, cutmix)[0]
    height, width = int(HEIGHT * (1 - share) ** 0.5), int(WIDTH * (1 - share) ** 0.5)
    top, left = integer("row", HEIGHT) - height // 2, integer("column", WIDTH) - width // 2
    return 0.0 if top <= y < top + height and left <= x < left + width else 1.0


@pytest.mark.parametrize("config", MIXES)
def test_same_as_one_pixel_at_a_time(dataset: Dataset, config: dict[str, Any]) -> None:
    """The neighbour in the order of the epoch is mixed in, after both were augmented."""
    found = epoch_of(loader(dataset, **config))
    order = found["targets"].tolist()
    shapes = {key: config.get(key, 0) for key in ("crop", "flip", "cutout")}
    assert dataset.mean is not None
    fill = [round(255 * mean) for mean in dataset.mean]
    images = augment(
        dataset.train.inputs, np.arange(NUM_TRAIN), seed=3, epoch=2, fill=fill, **shapes
    ).float()
    mixes = {key: config[key] for key in ("mixup", "cutmix") if key in config}
    for place, sample in enumerate(order):
        other = order[min(place ^ 1, NUM_TRAIN - 1)]
        assert found["other_targets"][place] == other
        total = 0.0
        for y in range(HEIGHT):
            for x in range(WIDTH):
                own = reference_weight(sample, y, x, **mixes)
                total += own
                expected = images[sample, :, y, x] * own + images[other, :, y, x] * (1 - own)
                difference = found["image"][place, :, y, x] - expected
                assert difference.abs().max() <= 0.5001
        assert found["mix"][place] == pytest.approx(total / (HEIGHT * WIDTH), abs=1e-6)


@pytest.mark.parametrize("config", MIXES)
@pytest.mark.parametrize("batch_size", [1, 2, 5, 33])
def test_the_cut_into_batches_changes_nothing(
    dataset: Dataset, config: dict[str, Any], batch_size: int
) -> None:
    whole = epoch_of(loader(dataset, **config))
    parts = epoch_of(loader(dataset, **{**config, "batch_size": batch_size}))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_image_and_features_agree(dataset: Dataset) -> None:
    batch = loader(dataset, mixup=0.2, cutmix=1.0).train_batch(0, 0)
    assert dataset.mean is not None
    assert dataset.std is not None
    assert batch["image"].dtype == torch.uint8
    assert torch.equal(batch["features"], Normalisation(dataset.mean, dataset.std)(batch["image"]))


def test_what_travels_is_there_only_where_it_is_asked_for(dataset: Dataset) -> None:
    assert set(loader(dataset, fields=()).train_batch(0, 0)) == {"features", "targets"}
    mixed = loader(dataset, mixup=1.0, fields=())
    batch = mixed.train_batch(0, 0)
    assert set(batch) == {"features", "targets", "other_targets", "mix"}
    assert (batch["other_targets"].dtype, batch["mix"].dtype) == (torch.int64, torch.float32)
    assert set(next(mixed.evaluation_batches("test"))) == {"features", "targets"}


@pytest.mark.parametrize("config", [{}, *MIXES])
def test_targets_can_be_had_without_the_inputs(dataset: Dataset, config: dict[str, Any]) -> None:
    batches = loader(dataset, **config)
    expected, found = batches.train_batch(1, 2), batches.train_targets(1, 2)
    assert set(found) == set(expected) - {"features", "image"}
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_own_share_of_mixup_is_the_larger_and_both_kinds_are_as_frequent() -> None:
    samples = np.arange(4000)
    weights = weights_of(samples, seed=0, epoch=0, height=4, width=4, mixup=1.0, cutmix=1.0)
    is_mixup = (weights.amin((1, 2)) == weights.amax((1, 2))) & (weights[:, 0, 0] < 1)
    assert weights[is_mixup].min() >= 0.5
    assert 0.4 < is_mixup.float().mean() < 0.55


@pytest.mark.parametrize(("seed", "epoch"), [(1, 0), (0, 1)])
def test_seed_and_epoch_change_the_numbers(seed: int, epoch: int) -> None:
    settings: dict[str, Any] = {"height": 4, "width": 4, "mixup": 1.0}
    first = weights_of(np.arange(5), seed=0, epoch=0, **settings)
    assert not torch.equal(first, weights_of(np.arange(5), seed=seed, epoch=epoch, **settings))


def test_numbers_in_floating_point_are_not_rounded() -> None:
    ones = torch.ones(1, 1, 1, 2)
    mixed = mix(ones, ones * 3, torch.tensor([[[0.75, 0.25]]]))
    assert mixed.flatten().tolist() == [1.5, 2.5]
    assert mix(ones.byte(), ones.byte() * 3, torch.tensor([[[0.8, 0.7]]])).flatten().tolist() == [
        1,
        2,
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_on_a_gpu() -> None:
    images = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).byte()
    weights = weights_of(np.arange(2), seed=0, epoch=0, height=4, width=5, mixup=1.0, cutmix=1.0)
    expected = mix(images, images.flip(0), weights)
    assert torch.equal(mix(images.cuda(), images.cuda().flip(0), weights.cuda()).cpu(), expected)
