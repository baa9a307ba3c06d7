"""The distance of gradients against the formula and a number made by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ppll.losses.reconciliation import gradient_distance


def test_the_formula_in_double_precision() -> None:
    """Gradients of every sample's own loss, one after the other."""
    inputs = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(4, 3, dtype=torch.float64) for _ in range(2)]
    targets = torch.tensor([0, 1, 2, 1, 0])
    sums = [
        torch.autograd.grad(F.cross_entropy((inputs @ w).tanh(), targets, reduction="sum"), inputs)
        for w in weights
    ]
    total = 0.0
    for row, target in zip(inputs, targets, strict=True):
        first, second = (
            torch.autograd.grad(F.cross_entropy((row @ w).tanh(), target), row)[0] for w in weights
        )
        total += sum((a - b) ** 2 for a, b in zip(first.tolist(), second.tolist(), strict=True))
    (first,), (second,) = sums
    assert gradient_distance(first, second).item() == pytest.approx(total / 5, rel=1e-12)


def test_a_distance_by_hand() -> None:
    """Two samples: differences (0, 2) and (0, -4) of their own gradients."""
    own = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    reference = torch.tensor([[1.0, 2.0], [0.0, -2.0]])
    distance = gradient_distance(own, reference)
    assert distance.shape == ()
    assert distance.item() == (4 * 1 + 4 * 4) / 2
    assert gradient_distance(own, own).item() == 0
