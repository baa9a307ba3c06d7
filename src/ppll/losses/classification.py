"""Losses and counts of a classifier."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["cross_entropy", "num_correct"]


def cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean over the batch of the negative log-likelihood of the targets, in nats.

    Args:
        logits: (N, classes), not normalised.
        targets: (N) class indices.
        label_smoothing: Share of the target's mass that is spread over all classes, 0 to below 1
            (Szegedy et al., "Rethinking the Inception architecture", CVPR 2016, sec. 7).

    Returns:
        A scalar.
    """
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def num_correct(logits: Tensor, targets: Tensor) -> Tensor:
    """How many samples have their largest logit at the target; stays on the device.

    Args:
        logits: (N, classes).
        targets: (N) class indices.

    Returns:
        A scalar of int64.
    """
    return (logits.argmax(1) == targets).sum()
