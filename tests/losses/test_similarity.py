"""Similarity matching beside the formula in float64 and numbers by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ppll.losses.similarity import class_similarities, cosine_similarities, similarity_matching


def slow_cosines(rows: list[list[float]]) -> list[list[float]]:
    centred = [[x - sum(row) / len(row) for x in row] for row in rows]
    norms = [sum(x * x for x in row) ** 0.5 for row in centred]
    return [
        [
            sum(a * b for a, b in zip(x, y, strict=True)) / (n * m)
            for y, m in zip(centred, norms, strict=True)
        ]
        for x, n in zip(centred, norms, strict=True)
    ]


def slow_deviations(maps: Tensor) -> list[list[float]]:
    """Of every channel of every sample, over its H * W values."""
    deviations = []
    for sample in maps.double().flatten(2).tolist():
        means = [sum(values) / len(values) for values in sample]
        sums = [sum((x - m) ** 2 for x in values) for values, m in zip(sample, means, strict=True)]
        deviations.append([(s / (len(v) - 1)) ** 0.5 for s, v in zip(sums, sample, strict=True)])
    return deviations


def slow_matching(found: list[list[float]], targets: Tensor, num_classes: int) -> float:
    wanted = slow_cosines(F.one_hot(targets, num_classes).double().tolist())
    num = len(found)
    return sum((found[i][j] - wanted[i][j]) ** 2 for i in range(num) for j in range(num)) / num**2


def test_vectors_are_compared_as_the_formula_says() -> None:
    vectors, targets = torch.randn(5, 7), torch.tensor([0, 2, 1, 2, 0])
    expected = slow_matching(slow_cosines(vectors.double().tolist()), targets, 4)
    assert similarity_matching(vectors, targets, 4).item() == pytest.approx(expected, rel=1e-5)


def test_maps_are_compared_by_the_deviations_of_their_channels() -> None:
    maps, targets = torch.randn(4, 6, 3, 5), torch.tensor([0, 1, 1, 2])
    expected = slow_matching(slow_cosines(slow_deviations(maps)), targets, 3)
    assert similarity_matching(maps, targets, 3).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(3, 4, 4), (6, 1, 1)])
def test_few_channels_and_single_pixels_are_compared_by_every_value(shape: tuple[int, ...]) -> None:
    maps = torch.randn(4, *shape)
    torch.testing.assert_close(cosine_similarities(maps), cosine_similarities(maps.flatten(1)))


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_similarities_of_classes_are_those_of_one_hot_rows(num_classes: int) -> None:
    targets = torch.tensor([0, 1, 1, 0, num_classes - 1])
    expected = cosine_similarities(F.one_hot(targets, num_classes).double())
    found = class_similarities(targets, num_classes)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_by_hand() -> None:
    """Rows (1, -1) and (-1, 1) have cosine -1; two classes of two ask for -1, one class for 1."""
    rows = torch.tensor([[3.0, 1.0], [0.0, 5.0]])
    assert similarity_matching(rows, torch.tensor([0, 1]), 2).item() == pytest.approx(0, abs=1e-6)
    assert similarity_matching(rows, torch.tensor([1, 1]), 2).item() == pytest.approx(2.0)
    # Of three classes others are at -1/2: two of four pairs are wrong by 1/2.
    assert similarity_matching(rows, torch.tensor([0, 1]), 3).item() == pytest.approx(0.125)


def test_samples_without_any_contrast_have_a_gradient_that_is_finite() -> None:
    maps = torch.zeros(3, 5, 2, 2, requires_grad=True)
    torch.autograd.backward(similarity_matching(maps, torch.tensor([0, 1, 0]), 2))
    assert maps.grad is not None
    assert bool(maps.grad.isfinite().all())
