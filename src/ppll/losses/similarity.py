"""Similarity matching: samples of one class shall look alike, others not.

Source: Nøkland and Eidnes, "Training Neural Networks with Local Error Signals" (ICML 2019, arXiv
1901.06656, eq. 1 to 3), and the authors' code.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

__all__ = ["class_similarities", "cosine_similarities", "similarity_matching"]

_TINY: Final = 1e-8
"""Added to norms, as in the authors' code."""
_FEW_CHANNELS: Final = 3
"""Maps of no more channels are compared pixel by pixel."""


def similarity_matching(features: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Mean squared difference of the samples' similarities and those of their classes.

    Args:
        features: (N, C, H, W) or (N, D).
        targets: (N) class indices.
        num_classes: Classes to tell apart.

    Returns:
        A scalar: the mean over all N * N pairs.
    """
    wanted = class_similarities(targets, num_classes)
    return (cosine_similarities(features) - wanted).square().mean()


def cosine_similarities(features: Tensor) -> Tensor:
    """Cosine of every two samples (N, N), each centred on its own mean; -1 to 1.

    Of a map the standard deviation of every channel counts, over positions; of one with at most
    three channels or a single position, every value. Always in float32 or wider.

    Args:
        features: (N, C, H, W) or (N, D).
    """
    rows = features.to(torch.promote_types(features.dtype, torch.float32))
    if rows.dim() == 4 and rows.shape[1] > _FEW_CHANNELS and rows[0, 0].numel() > 1:
        rows = rows.flatten(2).std(2)
    rows = rows.flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    normed = centred / (_TINY + torch.linalg.vector_norm(centred, dim=1, keepdim=True))
    with torch.autocast(rows.device.type, enabled=False):
        cosines: Tensor = (normed @ normed.T).clamp(-1, 1)
    return cosines


def class_similarities(targets: Tensor, num_classes: int) -> Tensor:
    """What ``cosine_similarities`` says of the targets' one-hot rows, in closed form (N, N).

    1 for two samples of a class, otherwise ``-1 / (num_classes - 1)``.

    Args:
        targets: (N) class indices.
        num_classes: Classes to tell apart.
    """
    other = -1 / max(1, num_classes - 1)
    is_same = targets[:, None] == targets[None, :]
    return torch.where(is_same, 1.0, other)
