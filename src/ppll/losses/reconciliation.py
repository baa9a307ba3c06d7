"""How far the gradients of two neighbouring blocks are from each other."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gradient_distance"]


def gradient_distance(gradient: Tensor, reference: Tensor) -> Tensor:
    """Mean over the batch of the squared distance between gradients of a sample's own loss.

    ``1/N * sum_n ||g_n - r_n||^2``, which does not depend on the batch's size. Source: see
    ``methods/sgr.py``.

    Args:
        gradient: (N, ...), g, in every sample that of its own loss.
        reference: (N, ...), r, the same of another loss, with respect to the same features.

    Returns:
        A scalar.
    """
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return (gradient.to(wide) - reference.to(wide)).square().sum() / len(gradient)
