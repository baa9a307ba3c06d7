"""One sample out of two: mixup and cutmix.

A sample is mixed with its neighbour in the order of the epoch, which is random itself, so what
becomes of it depends on seed, epoch and index alone, however the epoch is cut into batches. The
shares are drawn a sample, not a batch, for the same reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppll.data.augmentation.draws import Numbers, Samples
from ppll.data.augmentation.geometric import box_mask
from ppll.randomness import fold, uniform_integers, uniforms

__all__ = ["draw", "mix", "neighbours", "own_weights", "symmetric_beta"]

Shares = npt.NDArray[np.float64]

_SIDES: Final = (("top", "bottom"), ("left", "right"))


def draw(
    samples: Samples,
    *,
    seed: int,
    epoch: int,
    height: int,
    width: int,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> Numbers:
    """How much of every mixed sample is its own.

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

    Returns:
        By name: ``own`` (N) float32, the share of every pixel outside the other's box; the box as
        ``box top``, ``box bottom``, ``box left`` and ``box right`` (N), with cutmix only; and
        ``mix`` (N) float32, the sample's mean share of all pixels.
    """
    key = fold(seed, "mix", epoch)
    cuts = _takes_cutmix(key, samples, mixup, cutmix)
    shares = np.ones(len(samples))
    if mixup:
        drawn = symmetric_beta(fold(key, "mixup"), samples, mixup)
        shares = np.where(cuts, 1.0, np.maximum(drawn, 1 - drawn))
    own = shares.astype(np.float32)
    if not cutmix:
        return {"own": own, "mix": own}
    drawn = symmetric_beta(fold(key, "cutmix"), samples, cutmix)
    boxes = _boxes(key, samples, np.where(cuts, drawn, 1.0), height, width)
    rows, columns = (boxes[f"box {b}"] - boxes[f"box {a}"] for a, b in _SIDES)
    mean = own.astype(np.float64) * (height * width - rows * columns) / (height * width)
    return {"own": own, "mix": mean.astype(np.float32), **boxes}


def _takes_cutmix(key: int, samples: Samples, mixup: float, cutmix: float) -> npt.NDArray[np.bool_]:
    if mixup and cutmix:
        return uniform_integers(fold(key, "which"), samples, 2).astype(np.bool_)
    return np.full(len(samples), bool(cutmix))


def _boxes(
    key: int, samples: Samples, shares: Shares, height: int, width: int
) -> dict[str, Samples]:
    """Boxes of so large a rest of the area, around any pixel, cut off at the border."""
    bounds = {}
    for name, sides, size in zip(("row", "column"), _SIDES, (height, width), strict=True):
        length = (size * np.sqrt(1 - shares)).astype(np.int64)
        first = uniform_integers(fold(key, name), samples, size) - length // 2
        for side, bound in zip(sides, (first, first + length), strict=True):
            bounds[f"box {side}"] = np.clip(bound, 0, size)
    return bounds


def own_weights(drawn: Mapping[str, Tensor], *, height: int, width: int) -> Tensor:
    """How much every pixel of a mixed sample is its own.

    Args:
        drawn: What ``draw`` has drawn, each (N).
        height: Of the images, in pixels.
        width: The same.

    Returns:
        (N, H, W) float32, or (N, 1, 1) where all pixels of a sample have one share; 0 to 1.
    """
    own = drawn["own"].view(-1, 1, 1)
    if "box top" not in drawn:
        return own
    bounds = [drawn[f"box {side}"] for sides in _SIDES for side in sides]
    return own.masked_fill(box_mask(*bounds, height=height, width=width), 0)


def neighbours(samples: Tensor) -> Tensor:
    """The first and second, the third and fourth and so on changed for each other (N, ...).

    The last of an odd number is its own.
    """
    num_paired = len(samples) // 2 * 2
    changed = samples[:num_paired].reshape(-1, 2, *samples.shape[1:]).flip(1).flatten(0, 1)
    return torch.cat([changed, samples[num_paired:]])


def symmetric_beta(key: int, samples: Samples, alpha: float) -> Shares:
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
    shares: Shares = np.clip(0.5 + 0.5 * signed, 0.0, 1.0)  # Rounding can lead a bit beyond.
    return shares


def mix(images: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """Every image and its other one, pixel by pixel.

    Args:
        images: (N, C, H, W), uint8 or float32.
        others: What each is mixed with, like ``images``.
        weights: Share of a pixel that is the image's own: (N, H, W) or (N, 1, 1), 0 to 1.

    Returns:
        Images of the same type; bytes are rounded.
    """
    own = weights.unsqueeze(1)
    mixed = images * own + others * (1 - own)
    return mixed if images.is_floating_point() else mixed.round_().to(images.dtype)
