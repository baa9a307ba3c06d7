"""Losses and counts of a classifier."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["cross_entropy", "mixed_targets", "num_correct", "on_both_classes"]


def cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean over the batch of the negative log-likelihood of the targets, in nats.

    Args:
        logits: (N, classes), or (N, T, classes) where every token has a target; not normalised.
        targets: Class indices (N), or (N, T); or (N, classes) the share of each class in a sample.
        label_smoothing: Share of the target's mass that is spread over all classes, 0 to below 1
            (Szegedy et al., "Rethinking the Inception architecture", CVPR 2016, sec. 7).

    Returns:
        A scalar.
    """
    if logits.dim() > 2:
        logits, targets = logits.flatten(0, -2), targets.flatten()
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def mixed_targets(own: Tensor, other: Tensor, mix: Tensor, num_classes: int) -> Tensor:
    """Shares of the classes in samples that are mixed of two.

    The cross-entropy with them is ``mix * CE(own) + (1 - mix) * CE(other)`` of every sample.

    Args:
        own: (N) class indices.
        other: The same of what each is mixed with.
        mix: Share of the own class: (N), 0 to 1.
        num_classes: How many there are.

    Returns:
        (N, classes) in the type of ``mix``.
    """
    shares = mix.new_zeros(len(own), num_classes)
    rows = torch.arange(len(own), device=mix.device)
    shares[rows, own] = mix
    # The same class twice has the sum.
    shares[rows, other] += 1 - mix
    return shares


def on_both_classes(
    task_loss: Callable[[Tensor, Tensor], Tensor],
    other: Tensor,
    mix: Tensor,
    logits: Tensor,
    targets: Tensor,
) -> Tensor:
    """A loss of samples that are mixed of two; all but the last two arguments are the batch's."""
    return task_loss(logits, mixed_targets(targets, other, mix, logits.shape[1]))


def num_correct(logits: Tensor, targets: Tensor) -> Tensor:
    """How many targets the largest logit finds; stays on the device.

    Args:
        logits: (N, classes) or (N, T, classes).
        targets: Class indices (N) or (N, T).

    Returns:
        A scalar of int64.
    """
    return (logits.argmax(-1) == targets).sum()
