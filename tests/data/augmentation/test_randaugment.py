"""RandAugment: every operation against Pillow or by hand, and what is drawn."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from ppll.data.augmentation.colour import COLOUR_OPERATIONS
from ppll.data.augmentation.geometric import moved
from ppll.data.augmentation.randaugment import OPERATIONS, randaugment
from ppll.randomness import fold, uniform_integers
from tests.data.augmentation.applied import augment

STRENGTHS = [-1.0, -0.37, 0.11, 0.9]


def images(number: int = 4, channels: int = 3, height: int = 24, width: int = 32) -> Tensor:
    """Smooth and noisy, bright and dark, and one of a single value."""
    numbers = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 90, (number, channels, height, width), generator=numbers)
    ramp = torch.linspace(0, 160, width).long() * torch.arange(1, number + 1).view(-1, 1, 1, 1)
    made = (noise + ramp // number).to(torch.uint8)
    if number > 1:
        made[-1] = 77
    return made


def as_picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def as_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def by_pillow(name: str, image: Tensor, strength: float) -> Tensor:
    picture, factor = as_picture(image), 1 + 0.9 * strength
    match name:
        case "autocontrast":
            picture = ImageOps.autocontrast(picture)
        case "equalize":
            picture = ImageOps.equalize(picture)
        case "solarize":
            picture = ImageOps.solarize(picture, round(256 * (1 - abs(strength)) + 0.499))
        case "posterize":
            picture = ImageOps.posterize(picture, 8 - round(4 * abs(strength)))
        case "colour":
            picture = ImageEnhance.Color(picture).enhance(factor)
        case "contrast":
            picture = ImageEnhance.Contrast(picture).enhance(factor)
        case "brightness":
            picture = ImageEnhance.Brightness(picture).enhance(factor)
        case "sharpness":
            picture = ImageEnhance.Sharpness(picture).enhance(factor)
    return as_tensor(picture)


ROUNDED = {"colour", "contrast", "brightness", "sharpness", "autocontrast"}
"""Pillow cuts off where we round, and greys are a unit apart."""


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", COLOUR_OPERATIONS)
def test_same_as_pillow(name: str, strength: float) -> None:
    found = COLOUR_OPERATIONS[name](images(), torch.full((4,), strength, dtype=torch.float64))
    for image, result in zip(images(), found, strict=True):
        difference = (result.int() - by_pillow(name, image, strength).int()).abs().max()
        assert difference <= (2 if name in ROUNDED else 0)


def test_what_is_blended_by_hand() -> None:
    """One row of red, green and blue: 0.299 * 100 + 0.587 * 50 + 0.114 * 200 = 82.05."""
    image = torch.tensor([100, 50, 200], dtype=torch.uint8).view(1, 3, 1, 1)

    def values(name: str, strength: float) -> list[int]:
        strengths = torch.tensor([strength], dtype=torch.float64)
        return COLOUR_OPERATIONS[name](image, strengths).flatten().tolist()

    assert values("brightness", 1.0) == [190, 95, 255]
    assert values("brightness", -0.5) == [55, 28, 110]
    assert values("colour", -1.0) == [84, 79, 94]
    assert values("contrast", -1.0) == [84, 79, 94]  # the one pixel is its own mean
    assert values("sharpness", 1.0) == [100, 50, 200]  # all is border
    assert values("posterize", -1.0) == [96, 48, 192]
    assert values("solarize", 0.5) == [100, 50, 55]
    assert values("autocontrast", 1.0) == [100, 50, 200]


def test_autocontrast_stretches_to_the_whole_range() -> None:
    image = torch.tensor([10, 20, 60], dtype=torch.uint8).view(1, 1, 1, 3)
    found = COLOUR_OPERATIONS["autocontrast"](image, torch.zeros(1, dtype=torch.float64))
    assert found.flatten().tolist() == [0, 51, 255]


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("name", COLOUR_OPERATIONS)
def test_any_number_of_channels(name: str, channels: int) -> None:
    grey = images(channels=1).expand(-1, channels, -1, -1)
    strengths = torch.full((4,), 0.5, dtype=torch.float64)
    found = COLOUR_OPERATIONS[name](grey, strengths)
    assert torch.equal(found, found[:, :1].expand_as(found))
    if name == "colour":
        assert torch.equal(found, grey)


@pytest.mark.parametrize(
    "matrix",
    [
        ((1, 0.21, 0), (0, 1, 0)),
        ((1, 0, 0), (-0.29, 1, 0)),
        ((1, 0, 4.6), (0, 1, -3.3)),
        ((0.9, -0.43, 0), (0.43, 0.9, 0)),
    ],
)
def test_moves_are_the_same_as_pillow(matrix: tuple[tuple[float, ...], ...]) -> None:
    made = images()
    found = moved(
        made,
        torch.tensor([matrix] * 4, dtype=torch.float64),
        fill=torch.tensor((1, 2, 3), dtype=torch.uint8),
    )
    (a, b, c), (d, e, f) = matrix
    # Pillow counts from the corner.
    corner = (a, b, c + 16 - a * 16 - b * 12, d, e, f + 12 - d * 16 - e * 12)
    for image, result in zip(made, found, strict=True):
        picture = as_picture(image).transform(
            (32, 24), Image.Transform.AFFINE, corner, Image.Resampling.NEAREST, fillcolor=(1, 2, 3)
        )
        assert torch.equal(result, as_tensor(picture))


def of_one_operation(name: str, *, magnitude: float = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Images for which an operation is drawn, before and after it, and to which side it went."""
    samples = np.arange(400)
    drawn = uniform_integers(fold(5, "operation", 0), samples, len(OPERATIONS))
    sides = uniform_integers(fold(5, "side", 0), samples, 2) * 2 - 1
    chosen = np.flatnonzero(drawn == OPERATIONS.index(name))
    made = images(1).expand(len(chosen), -1, -1, -1)
    found = randaugment(made, samples[chosen], 5, magnitude=magnitude, num_operations=1)
    return made, found, torch.from_numpy(sides[chosen])


def test_translation_goes_to_the_drawn_side_by_so_many_pixels() -> None:
    """At the largest magnitude 150 / 331 of 32 or 24 pixels are 14.5 or 10.9: 15 or 11."""
    made, found, sides = of_one_operation("translate-x")
    for before, after, side in zip(made, found, sides.tolist(), strict=True):
        expected = torch.zeros_like(before)
        if side > 0:
            expected[..., :-15] = before[..., 15:]
            assert torch.equal(after[..., :17], expected[..., :17])
        else:
            assert torch.equal(after[..., 15:], before[..., :-15])
    made, found, sides = of_one_operation("translate-y")
    assert {-1, 1} <= set(sides.tolist())
    for before, after, side in zip(made, found, sides.tolist(), strict=True):
        shifted = (after[:, :-11], before[:, 11:]) if side > 0 else (after[:, 11:], before[:, :-11])
        assert torch.equal(*shifted)


def test_a_quarter_turn_is_exact_and_a_shear_keeps_the_middle_rows() -> None:
    square = images(1, height=9, width=9)
    quarter = torch.tensor([((0, -1, 0), (1, 0, 0))], dtype=torch.float64)
    assert torch.equal(moved(square, quarter), square.rot90(1, (2, 3)))
    sheared = moved(square, torch.tensor([((1, 0.3, 0), (0, 1, 0))], dtype=torch.float64))
    assert torch.equal(sheared[:, :, 3:6], square[:, :, 3:6])
    assert not torch.equal(sheared, square)


def test_identity_and_magnitude_0_change_nothing_that_has_a_strength() -> None:
    for name in OPERATIONS:
        made, found, _ = of_one_operation(name, magnitude=0)
        assert len(made)
        assert torch.equal(made, found) == (name not in ("autocontrast", "equalize"))


def test_every_operation_is_about_as_frequent_on_both_sides() -> None:
    samples = np.arange(14_000)
    drawn = uniform_integers(fold(5, "operation", 0), samples, len(OPERATIONS))
    sides = uniform_integers(fold(5, "side", 0), samples, 2)
    counts = collections.Counter(zip(drawn.tolist(), sides.tolist(), strict=True))
    assert len(OPERATIONS) == 14
    assert len(counts) == 28
    assert min(counts.values()) > 400
    assert max(counts.values()) < 600


def test_operations_follow_each_other() -> None:
    made, samples = images(32), np.arange(32)
    both = randaugment(made, samples, 3, magnitude=7, num_operations=2)
    first = randaugment(made, samples, 3, magnitude=7, num_operations=1)
    drawn = uniform_integers(fold(3, "operation", 1), samples, len(OPERATIONS))
    unchanged = torch.from_numpy(drawn == OPERATIONS.index("identity"))
    assert torch.equal(both[unchanged], first[unchanged])
    assert not torch.equal(both, first)


SETTINGS: dict[str, Any] = {"crop": 2, "flip": True, "randaugment": 9, "fill": (9, 9, 9)}


@settings(deadline=None)  # The first call takes long on a busy machine.
@given(st.permutations(range(12)), st.integers(1, 12))
def test_depends_neither_on_order_nor_on_company(order: list[int], number: int) -> None:
    chosen = np.array(order[:number])
    made, samples = images(12), np.arange(12) * 7
    whole = augment(made, samples, seed=1, epoch=0, **SETTINGS)
    part = augment(made[chosen], samples[chosen], seed=1, epoch=0, **SETTINGS)
    assert torch.equal(part, whole[chosen])


@pytest.mark.parametrize(("seed", "epoch"), [(1, 0), (0, 1)])
def test_seed_and_epoch_change_what_is_drawn(seed: int, epoch: int) -> None:
    made, samples = images(12), np.arange(12)
    first = augment(made, samples, seed=0, epoch=0, randaugment=5)
    assert not torch.equal(first, augment(made, samples, seed=seed, epoch=epoch, randaugment=5))


def test_input_is_left_as_it_was_and_result_is_dense() -> None:
    made = images(12)
    before, generator = made.clone(), torch.get_rng_state()
    found = augment(made, np.arange(12), seed=0, epoch=0, randaugment=9, randaugment_ops=3)
    assert torch.equal(made, before)
    assert torch.equal(generator, torch.get_rng_state())
    assert found.is_contiguous()
    assert found.dtype == torch.uint8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", COLOUR_OPERATIONS)
def test_same_on_a_gpu(name: str) -> None:
    strengths = torch.tensor(STRENGTHS, dtype=torch.float64)
    expected = COLOUR_OPERATIONS[name](images(), strengths)
    assert torch.equal(COLOUR_OPERATIONS[name](images().cuda(), strengths.cuda()).cpu(), expected)
