"""The supervised contrastive loss beside the formula in float64 and a number by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ppll.losses.contrastive import supervised_contrastive


def slow_loss(projections: Tensor, targets: Tensor, temperature: float) -> float:
    rows = [[x / math.hypot(*row) for x in row] for row in projections.double().tolist()]
    dots = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]
    labels, total = targets.tolist(), 0.0
    for i, label in enumerate(labels):
        others = [j for j in range(len(labels)) if j != i]
        positives = [j for j in others if labels[j] == label]
        sum_all = sum(math.exp(dots[i][j] / temperature) for j in others)
        logs = [math.log(math.exp(dots[i][j] / temperature) / sum_all) for j in positives]
        total -= sum(logs) / max(1, len(positives))
    return total / len(labels)


@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
def test_it_is_what_the_formula_says(temperature: float) -> None:
    projections, targets = torch.randn(7, 5), torch.tensor([0, 1, 1, 0, 2, 1, 0])
    found = supervised_contrastive(projections, targets, temperature=temperature).item()
    assert found == pytest.approx(slow_loss(projections, targets, temperature), rel=1e-4)


def test_by_hand() -> None:
    """Two alike, one at right angles: -log(e / (e + 1)) twice, and nothing of the lonely third."""
    projections = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    found = supervised_contrastive(projections, torch.tensor([0, 0, 1]), temperature=1.0)
    assert found.item() == pytest.approx(2 / 3 * math.log(1 + 1 / math.e))


@pytest.mark.parametrize("num_samples", [1, 3])
def test_samples_alone_of_their_class_add_nothing(num_samples: int) -> None:
    projections = torch.randn(num_samples, 4, requires_grad=True)
    loss = supervised_contrastive(projections, torch.arange(num_samples), temperature=0.1)
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert projections.grad is not None
    assert bool((projections.grad == 0).all())


def test_projections_of_no_length_have_a_gradient_that_is_finite() -> None:
    projections = torch.zeros(4, 3, requires_grad=True)
    loss = supervised_contrastive(projections, torch.tensor([0, 0, 1, 1]), temperature=0.07)
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(math.log(3))
    assert projections.grad is not None
    assert bool(projections.grad.isfinite().all())


def test_bfloat16_is_compared_in_float32() -> None:
    projections, targets = torch.randn(6, 4).bfloat16(), torch.tensor([0, 1, 0, 1, 0, 1])
    expected = supervised_contrastive(projections.float(), targets, temperature=0.07)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(supervised_contrastive(projections, targets, temperature=0.07), expected)
