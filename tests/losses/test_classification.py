"""Losses and counts against sums made by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ppll.losses.classification import cross_entropy, mixed_targets, num_correct

LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, -1.0]])
TARGETS = torch.tensor([0, 2])


def negative_log_likelihoods(logits: list[float]) -> list[float]:
    total = math.log(sum(math.exp(logit) for logit in logits))
    return [total - logit for logit in logits]


def test_cross_entropy_is_the_mean_negative_log_likelihood() -> None:
    first, second = (negative_log_likelihoods(row) for row in LOGITS.tolist())
    loss = cross_entropy(LOGITS, TARGETS)
    assert loss.shape == ()
    assert loss.item() == pytest.approx((first[0] + second[2]) / 2)


def test_label_smoothing_spreads_a_share_over_all_classes() -> None:
    rows = [negative_log_likelihoods(row) for row in LOGITS.tolist()]
    samples = [0.9 * row[t] + 0.1 * sum(row) / 3 for row, t in zip(rows, [0, 2], strict=True)]
    loss = cross_entropy(LOGITS, TARGETS, label_smoothing=0.1)
    assert loss.item() == pytest.approx(sum(samples) / 2)


def test_the_gradient_is_prediction_less_target() -> None:
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(logits, TARGETS), logits)
    one_hot = torch.eye(3)[TARGETS]
    assert torch.allclose(gradient, (LOGITS.softmax(1) - one_hot) / 2)


def test_num_correct_counts_largest_logits_at_the_target() -> None:
    count = num_correct(LOGITS, TARGETS)
    assert count.item() == 1
    assert count.shape == ()
    assert count.dtype == torch.int64
    assert num_correct(LOGITS, torch.tensor([0, 1])).item() == 2


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_mixed_samples_have_a_share_of_the_loss_of_either_class(label_smoothing: float) -> None:
    """The second sample is mixed with one of its own class."""
    first, second = (negative_log_likelihoods(row) for row in LOGITS.tolist())
    plain = [0.7 * first[0] + 0.3 * first[1], second[2]]
    smooth = [
        (1 - label_smoothing) * loss + label_smoothing * sum(row) / 3
        for loss, row in zip(plain, (first, second), strict=True)
    ]
    shares = mixed_targets(TARGETS, torch.tensor([1, 2]), torch.tensor([0.7, 0.4]), 3)
    assert torch.allclose(shares, torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]]))
    loss = cross_entropy(LOGITS, shares, label_smoothing=label_smoothing)
    assert loss.item() == pytest.approx(sum(smooth) / 2)
