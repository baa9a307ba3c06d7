"""One sample out of two: mixup and cutmix.

A sample is mixed with its neighbour in the order of the epoch, which is random itself, so what
becomes of it depends on seed, epoch and index alone, however the epoch is cut into batches. The
shares are drawn a sample, not a batch, for the same reason.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppll.data.augmentation.geometric import box_mask
from ppll.randomness import fold, uniform_integers, uniforms

__all__ = ["mix", "own_weights", "symmetric_beta"]

Samples: TypeAlias = npt.NDArray[np.int64]
Numbers: TypeAlias = npt.NDArray[np.float64]


def own_weights(
    samples: Samples,
    *,
    seed: int,
    epoch: int,
    height: int,
    width: int,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> Tensor:
    """How much every pixel of a mixed sample is its own: (N, H, W) float32, 0 to 1.

    With mixup (Zhang et al., ICLR 2018) all pixels of a sample are its own by one share. Drawn from
    a symmetric distribution for both samples of a pair, it may as well be the larger of itself and
    its rest, so that a sample's own class is the one that shows most. With cutmix (Yun et al., ICCV
    2019) a box is the other sample's and the rest its own.

    Args:
        samples: Indices (N).
        seed: The run's seed.
        epoch: Epoch, from 0.
        height: Of the images, in pixels.
        width: The same.
        mixup: Both parameters of the beta distribution of the share; 0 for no mixup.
        cutmix: The same for cutmix; with both on, a sample has one of them, as often this as that.
    """
    key = fold(seed, "mix", epoch)
    cuts = _takes_cutmix(key, samples, mixup, cutmix)
    shares = np.ones(len(samples))
    if mixup:
        drawn = symmetric_beta(fold(key, "mixup"), samples, mixup)
        shares = np.where(cuts, 1.0, np.maximum(drawn, 1 - drawn))
    weights = torch.from_numpy(shares.astype(np.float32))[:, None, None].repeat(1, height, width)
    if cutmix:
        drawn = symmetric_beta(fold(key, "cutmix"), samples, cutmix)
        boxes = _boxes(key, samples, np.where(cuts, drawn, 1.0), height, width)
        weights.masked_fill_(boxes, 0)
    return weights


def _takes_cutmix(key: int, samples: Samples, mixup: float, cutmix: float) -> npt.NDArray[np.bool_]:
    if mixup and cutmix:
        return uniform_integers(fold(key, "which"), samples, 2).astype(np.bool_)
    return np.full(len(samples), bool(cutmix))


def _boxes(key: int, samples: Samples, shares: Numbers, height: int, width: int) -> Tensor:
    """Boxes of so large a rest of the area, around any pixel, cut off at the border: (N, H, W)."""
    bounds = []
    for name, size in (("row", height), ("column", width)):
        length = (size * np.sqrt(1 - shares)).astype(np.int64)
        first = uniform_integers(fold(key, name), samples, size) - length // 2
        bounds += [torch.from_numpy(first), torch.from_numpy(first + length)]
    return box_mask(*bounds, height=height, width=width)


def symmetric_beta(key: int, samples: Samples, alpha: float) -> Numbers:
    """One number from Beta(alpha, alpha) for each sample, a function of key and sample.

    If T has Student's t distribution with 2 alpha degrees of freedom, ``(1 + T / sqrt(2 alpha +
    T^2)) / 2`` has this one; T is made of two uniform numbers (Bailey, "Polar generation of random
    variates with the t-distribution", Mathematics of Computation 62, 1994).
    """
    radius, angle = (uniforms(fold(key, name), samples) for name in ("radius", "angle"))
    inner = radius ** (1 / alpha)
    cosine = np.cos(2 * np.pi * angle)
    outer = 1 - inner
    signed = cosine * np.sqrt(outer / (inner + outer * cosine**2))
    shares: Numbers = np.clip(0.5 + 0.5 * signed, 0.0, 1.0)  # Rounding can lead a bit beyond.
    return shares


def mix(images: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """Every image and its other one, pixel by pixel.

    Args:
        images: (N, C, H, W), uint8 or float32.
        others: What each is mixed with, like ``images``.
        weights: Share of a pixel that is the image's own: (N, H, W), 0 to 1.

    Returns:
        Images of the same type; bytes are rounded.
    """
    own = weights.to(images.device).unsqueeze(1)
    mixed = images * own + others * (1 - own)
    return mixed if images.is_floating_point() else mixed.round_().to(images.dtype)
