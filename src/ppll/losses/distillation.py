"""Losses between two predictions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["kl_divergence"]


def kl_divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Mean over predictions of KL(p || q), p the softmax of the logits, q that of the reference.

    Always in float32 or wider.

    Args:
        logits: (N, classes) or (N, T, classes), not normalised.
        reference: The same, of another prediction.

    Returns:
        A scalar, in nats.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.kl_div(
        F.log_softmax(reference.to(wide), dim=-1).flatten(0, -2),
        F.log_softmax(logits.to(wide), dim=-1).flatten(0, -2),
        reduction="batchmean",
        log_target=True,
    )
