"""Losses between two predictions, beside the formula in float64 and numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ppll.losses.distillation import kl_divergence


def slow_kl(logits: Tensor, reference: Tensor) -> float:
    total = 0.0
    for row, other in zip(logits.double().tolist(), reference.double().tolist(), strict=True):
        p = [math.exp(x) / sum(map(math.exp, row)) for x in row]
        q = [math.exp(x) / sum(map(math.exp, other)) for x in other]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(logits)


def test_it_is_what_the_formula_says() -> None:
    logits, reference = torch.randn(5, 7), torch.randn(5, 7)
    assert kl_divergence(logits, reference).item() == pytest.approx(slow_kl(logits, reference))


def test_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2)."""
    logits, reference = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kl_divergence(logits, reference).item() == pytest.approx(expected)
    assert kl_divergence(logits, logits).item() == pytest.approx(0.0, abs=1e-7)
