"""Supervised contrastive loss (Khosla et al., NeurIPS 2020, arXiv 2004.11362, eq. 2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["supervised_contrastive"]


def supervised_contrastive(projections: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    """Mean over samples of how badly their class is told from the rest of the batch, in nats.

    ``-1 / |P(i)| * sum_{p in P(i)} log(exp(z_i z_p / T) / sum_{a != i} exp(z_i z_a / T))`` with z
    the projections of length 1 and P(i) the other samples of i's class. A sample that is alone of
    its class adds nothing, but counts, as in the code of InfoPro. Always in float32 or wider.

    Args:
        projections: (N, D) of any length.
        targets: (N) class indices.
        temperature: T, above 0.

    Returns:
        A scalar.
    """
    log_shares = _log_shares(projections, temperature)
    itself = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    positives = (targets[:, None] == targets[None, :]) & ~itself
    sums = torch.where(positives, log_shares, 0.0).sum(1)
    return -(sums / positives.sum(1).clamp(min=1)).mean()


def _log_shares(projections: Tensor, temperature: float) -> Tensor:
    """Logarithm of each sample's share of all that an anchor is compared with (N, N)."""
    rows = projections.to(torch.promote_types(projections.dtype, torch.float32))
    normed = F.normalize(rows, dim=1)
    with torch.autocast(rows.device.type, enabled=False):
        logits = normed @ normed.T / temperature
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    others = logits.masked_fill(itself, torch.finfo(logits.dtype).min)
    return others - others.logsumexp(1, keepdim=True)
