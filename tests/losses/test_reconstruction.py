"""Reconstruction of images beside the formula in float64 and numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ppll.losses.reconstruction import image_reconstruction, input_reconstruction


def test_bytes_are_compared_by_binary_cross_entropy() -> None:
    decoded = torch.randn(2, 3, 4, 4)
    image = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    total = 0.0
    for logit, byte in zip(
        decoded.double().flatten().tolist(), image.flatten().tolist(), strict=True
    ):
        found, wanted = 1 / (1 + math.exp(-logit)), byte / 255
        total -= wanted * math.log(found) + (1 - wanted) * math.log(1 - found)
    expected = total / image.numel()
    assert image_reconstruction(decoded, image).item() == pytest.approx(expected, rel=1e-5)


def test_by_hand() -> None:
    """Zero means 1/2, which costs log 2 whatever is wanted; log 3 means 3/4."""
    image = torch.tensor([255, 0], dtype=torch.uint8).view(1, 1, 1, 2)
    assert image_reconstruction(torch.zeros(1, 1, 1, 2), image).item() == pytest.approx(math.log(2))
    decoded = torch.full((1, 1, 1, 2), math.log(3.0))
    expected = (math.log(4 / 3) + math.log(4)) / 2
    assert image_reconstruction(decoded, image).item() == pytest.approx(expected)


def test_floating_point_is_compared_by_the_squared_difference() -> None:
    decoded, image = torch.tensor([[[[1.0, -2.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    assert image_reconstruction(decoded, image).item() == pytest.approx((1 + 9) / 2)


def test_an_input_is_compared_by_the_mean_of_all_squares() -> None:
    decoded, inputs = torch.randn(2, 3, 4, 5, 2, dtype=torch.float64).unbind()
    pairs = zip(decoded.flatten().tolist(), inputs.flatten().tolist(), strict=True)
    expected = sum((a - b) ** 2 for a, b in pairs) / 120
    assert input_reconstruction(decoded, inputs).item() == pytest.approx(expected, rel=1e-12)


def test_an_input_s_error_by_hand() -> None:
    error = input_reconstruction(
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [2.0, 4.0]])
    )
    assert error.shape == ()
    assert error.item() == (4 + 1) / 4
