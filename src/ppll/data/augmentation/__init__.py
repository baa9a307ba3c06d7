"""What is done to training images: each by itself, then two by two, on whole batches.

Every random number is a hash of the seed, the epoch and the index of the sample, so an image is
changed in the same way whichever batch it comes in and whoever asks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppll.data.augmentation.geometric import crop_at, cut_out, flipped
from ppll.data.augmentation.randaugment import randaugment as changed
from ppll.randomness import fold, uniform_integers

__all__ = ["augment", "normalise"]


def augment(
    images: Tensor,
    samples: npt.NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    crop: int = 0,
    flip: bool = False,
    randaugment: float = 0.0,
    randaugment_ops: int = 2,
    cutout: int = 0,
    fill: Sequence[float] | None = None,
) -> Tensor:
    """Crop, mirror and change every image at random, and cut a square out of it, in this order.

    Args:
        images: (N, C, H, W), on any device; of any type, but bytes where RandAugment changes them.
        samples: Index of every image's sample (N).
        seed: The run's seed.
        epoch: Epoch, from 0.
        crop: Pixels of zeros added on every side before H times W are cut out again.
        flip: Whether to mirror left and right, for every sample with probability one half.
        randaugment: Magnitude of RandAugment's operations, 0 to 10; 0 for none.
        randaugment_ops: How many of them an image goes through.
        cutout: Side in pixels of a square, anywhere, that is painted over; 0 for none.
        fill: Of every channel (C), in the type of ``images``: what it is painted with, and what
            RandAugment shifts in; 0 without.

    Returns:
        The changed images (N, C, H, W); ``images`` itself where nothing is asked for.
    """
    key = fold(seed, "augment", epoch)
    height, width = images.shape[-2:]

    def drawn(name: str, high: int) -> Tensor:
        return torch.from_numpy(uniform_integers(fold(key, name), samples, high)).to(images.device)

    if crop:
        top, left = drawn("top", 2 * crop + 1), drawn("left", 2 * crop + 1)
        images = crop_at(images, top, left, padding=crop)
    if flip:
        images = flipped(images, drawn("flip", 2).bool())
    if randaugment:
        images = changed(
            images,
            samples,
            fold(key, "randaugment"),
            magnitude=randaugment,
            num_operations=randaugment_ops,
            fill=fill,
        )
    if cutout:
        row, column = drawn("cutout row", height), drawn("cutout column", width)
        images = cut_out(images, row, column, side=cutout, fill=fill)
    return images


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes to float32 with mean 0 and deviation 1: ``(images / 255 - mean) / std``.

    Args:
        images: uint8 (N, C, H, W).
        mean: Of every channel (C), 0 to 1.
        std: Standard deviation of every channel (C).
    """
    means, stds = (
        torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (mean, std)
    )
    return images.to(torch.float32).div_(255).sub_(means).div_(stds)
