"""What changes the values of pixels and leaves them where they are.

An operation takes bytes (N, C, H, W) and, of every image, how strongly it is changed and to which
side: (N) float64, -1 to 1. Wherever whole numbers do, it computes with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

__all__ = ["COLOUR_OPERATIONS"]

_WIDEST_FACTOR: Final = 0.9
_MOST_BITS_LOST: Final = 4
_LUMA: Final = (299, 587, 114)
"""Thousandths of red, green and blue in a grey."""


def _brightness(images: Tensor, strengths: Tensor) -> Tensor:
    """Away from black or towards it."""
    return _blended(torch.zeros_like(images), images, strengths)


def _saturation(images: Tensor, strengths: Tensor) -> Tensor:
    """Away from the grey of the pixel or towards it."""
    return _blended(_grey(images), images, strengths)


def _contrast(images: Tensor, strengths: Tensor) -> Tensor:
    """Away from the mean grey of the image or towards it."""
    grey = _grey(images).to(torch.int64)
    number = grey[0].numel()
    means = (2 * grey.sum((1, 2, 3)) + number) // (2 * number)
    return _blended(means.view(-1, 1, 1, 1), images, strengths)


def _sharpness(images: Tensor, strengths: Tensor) -> Tensor:
    """Away from the smoothed image or towards it; pixels at the border stay."""
    whole = images.to(torch.int32)
    height, width = images.shape[-2:]
    nine = sum(
        whole[..., y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3)
    )
    smoothed = whole.clone()
    smoothed[..., 1:-1, 1:-1] = (nine + 4 * whole[..., 1:-1, 1:-1] + 6) // 13
    return _blended(smoothed, images, strengths)


def _posterize(images: Tensor, strengths: Tensor) -> Tensor:
    """Without the lowest bits."""
    lost = (_MOST_BITS_LOST * strengths.abs()).round().to(torch.int32).view(-1, 1, 1, 1)
    return ((images.to(torch.int32) >> lost) << lost).to(torch.uint8)


def _solarize(images: Tensor, strengths: Tensor) -> Tensor:
    """Bright values turned round."""
    thresholds = (256 * (1 - strengths.abs())).view(-1, 1, 1, 1)
    return torch.where(images >= thresholds, 255 - images, images)


def _autocontrast(images: Tensor, strengths: Tensor) -> Tensor:
    """Every channel stretched to the whole range."""
    del strengths
    whole = images.to(torch.int32)
    low, high = whole.amin((2, 3), keepdim=True), whole.amax((2, 3), keepdim=True)
    stretched = (whole - low) * 255 // (high - low).clamp(min=1)
    return torch.where(high > low, stretched, whole).to(torch.uint8)


def _equalize(images: Tensor, strengths: Tensor) -> Tensor:
    """Every channel's values spread, so that all are as frequent."""
    del strengths
    values = images.flatten(2).to(torch.int64)
    counts = values.new_zeros(*values.shape[:2], 256)
    counts.scatter_add_(2, values, torch.ones_like(values))
    brightest = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - brightest) // 255
    below = counts.cumsum(2) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    spread = torch.where(step > 0, table.gather(2, values), values)
    return spread.view(images.shape).to(torch.uint8)


COLOUR_OPERATIONS: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "solarize": _solarize,
    "colour": _saturation,
    "posterize": _posterize,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
}
"""Every operation by name."""


def _blended(towards: Tensor, images: Tensor, strengths: Tensor) -> Tensor:
    """Images as far away from ``towards`` as 1 + 0.9 times their strength says."""
    factors = (1 + _WIDEST_FACTOR * strengths).to(torch.float32).view(-1, 1, 1, 1)
    blended = images * factors + towards * (1 - factors)
    return blended.round_().clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """(N, 1, H, W): of three channels as the eye weighs them, otherwise their mean."""
    channels = images.shape[1]
    weights = _LUMA if channels == 3 else (1,) * channels
    total = sum(weights)
    grey = torch.zeros_like(images[:, :1], dtype=torch.int64)
    for channel, weight in enumerate(weights):
        grey.add_(images[:, channel : channel + 1], alpha=weight)
    return (2 * grey + total) // (2 * total)
