"""Crop, flip and cutout: as a slow reference has them, and functions of seed, epoch and sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ppll.data.augmentation import Normalisation
from ppll.randomness import fold, uniform_integers
from tests.data.augmentation.applied import augment


def batch(number: int = 12, dtype: torch.dtype = torch.uint8) -> Tensor:
    values = torch.arange(number * 2 * 5 * 6) % 251 + 1  # no zeros, so that padding shows
    return values.reshape(number, 2, 5, 6).to(dtype)


def reference(
    image: Tensor, sample: int, *, seed: int, epoch: int, crop: int, flip: bool, cutout: int = 0
) -> Tensor:
    """One image, pixel by pixel; what is cut out of it is 7 in the first channel and 9 in the
    other."""
    key = fold(seed, "augment", epoch)
    one = np.array([sample])
    top, left = (uniform_integers(fold(key, s), one, 2 * crop + 1)[0] for s in ("top", "left"))
    mirrored = flip and uniform_integers(fold(key, "flip"), one, 2)[0]
    _, height, width = image.shape
    result = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            from_y = y + int(top) - crop
            from_x = (width - 1 - x if mirrored else x) + int(left) - crop
            if 0 <= from_y < height and 0 <= from_x < width:
                result[:, y, x] = image[:, from_y, from_x]
    if cutout:
        middle = [
            int(uniform_integers(fold(key, f"cutout {name}"), one, high)[0])
            for name, high in (("row", height), ("column", width))
        ]
        first_y, first_x = (place - cutout // 2 for place in middle)
        for y in range(max(0, first_y), min(height, first_y + cutout)):
            for x in range(max(0, first_x), min(width, first_x + cutout)):
                result[:, y, x] = torch.tensor([7, 9])
    return result


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("crop", "flip", "cutout"),
    [
        *[(0, True, 0), (2, False, 0), (2, True, 0), (4, True, 0)],
        *[(0, False, 1), (0, False, 2), (0, False, 3), (2, True, 4)],
    ],
)
def test_same_as_one_image_at_a_time(
    dtype: torch.dtype, crop: int, flip: bool, cutout: int
) -> None:
    images, samples = batch(dtype=dtype), np.arange(100, 112)
    shapes: dict[str, Any] = {"crop": crop, "flip": flip, "cutout": cutout}
    found = augment(images, samples, seed=3, epoch=2, fill=(7, 9), **shapes)
    assert found.dtype == dtype
    for image, sample, result in zip(images, samples, found, strict=True):
        assert torch.equal(result, reference(image, int(sample), seed=3, epoch=2, **shapes))


def test_what_is_cut_out_is_black_unless_a_colour_is_given() -> None:
    found = augment(batch(), np.arange(12), seed=0, epoch=0, cutout=3)
    assert set(torch.where(found == batch(), 1, found).unique().tolist()) == {0, 1}


@given(st.permutations(range(12)), st.integers(1, 12))
def test_depends_neither_on_order_nor_on_company(order: list[int], number: int) -> None:
    chosen = np.array(order[:number])
    images, samples = batch(), np.arange(12) * 7
    whole = augment(images, samples, seed=1, epoch=0, crop=2, flip=True)
    part = augment(images[chosen], samples[chosen], seed=1, epoch=0, crop=2, flip=True)
    assert torch.equal(part, whole[chosen])


@pytest.mark.parametrize(("seed", "epoch"), [(1, 0), (0, 1)])
def test_seed_and_epoch_change_the_numbers(seed: int, epoch: int) -> None:
    images, samples = batch(), np.arange(12)
    first = augment(images, samples, seed=0, epoch=0, crop=2)
    assert not torch.equal(first, augment(images, samples, seed=seed, epoch=epoch, crop=2))


def test_every_shift_and_both_sides_are_about_as_frequent() -> None:
    number = 9000
    image = torch.tensor([[[1, 2, 3]] * 3], dtype=torch.uint8)
    image = image * torch.tensor([[1], [10], [40]], dtype=torch.uint8)
    found = augment(
        image.expand(number, 1, 3, 3), np.arange(number), seed=0, epoch=0, crop=1, flip=True
    )
    _, counts = np.unique(found.flatten(1).numpy(), axis=0, return_counts=True)
    assert len(counts) == 18
    assert counts.min() > 0.8 * number / 18
    assert counts.max() < 1.2 * number / 18


def test_input_is_left_as_it_was_and_result_is_dense() -> None:
    images = batch()
    before = images.clone()
    found = augment(images, np.arange(12), seed=0, epoch=0, crop=2, flip=True)
    assert torch.equal(images, before)
    assert found.is_contiguous()


def test_nothing_asked_nothing_done() -> None:
    images = batch()
    assert augment(images, np.arange(12), seed=0, epoch=0) is images


def test_default_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    augment(batch(), np.arange(12), seed=0, epoch=0, crop=2, flip=True)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_on_a_gpu() -> None:
    expected = augment(batch(), np.arange(12), seed=0, epoch=0, crop=2, flip=True)
    found = augment(batch().cuda(), np.arange(12), seed=0, epoch=0, crop=2, flip=True)
    assert torch.equal(found.cpu(), expected)


def test_normalise_gives_mean_0_and_deviation_1() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    found = Normalisation((0.0, 0.1, 0.5), (1.0, 0.2, 0.25))(images)
    assert found.flatten().tolist() == pytest.approx([0.0, 0.5, 2.0])
    assert found.dtype == torch.float32
