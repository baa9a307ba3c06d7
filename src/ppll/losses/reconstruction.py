"""How well an image, or a block's own input, can be told from features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ppll.losses.classification import cross_entropy

__all__ = ["image_reconstruction", "input_reconstruction"]


def image_reconstruction(decoded: Tensor, image: Tensor) -> Tensor:
    """Mean over all values of the error of a reconstructed image.

    Bytes are scaled to 0 to 1 and compared by binary cross-entropy with the sigmoid of ``decoded``,
    in nats (InfoPro, Wang et al., ICLR 2021, sec. 3.3 and code). Floating point has no known range,
    so it is compared by the squared difference from ``decoded`` itself.

    Args:
        decoded: (N, C, H, W), before the sigmoid.
        image: (N, C, H, W), uint8 or floating point.

    Returns:
        A scalar.
    """
    if image.dtype == torch.uint8:
        wide = decoded.to(torch.promote_types(decoded.dtype, torch.float32))
        return F.binary_cross_entropy_with_logits(wide, image.to(wide.dtype) / 255)
    return F.mse_loss(decoded, image)


def input_reconstruction(decoded: Tensor, inputs: Tensor) -> Tensor:
    """Mean over all numbers of the squared difference; of tokens, the mean cross-entropy in nats.

    Args:
        decoded: (N, ...), what was made of a block's output; of tokens logits (N, T, tokens).
        inputs: (N, ...), what the block has read; tokens are (N, T) int64.

    Returns:
        A scalar.
    """
    if not inputs.is_floating_point():
        return cross_entropy(decoded, inputs)
    return F.mse_loss(decoded, inputs)
