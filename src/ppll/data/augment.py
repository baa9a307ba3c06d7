"""Random crop and flip of a whole batch, and the scaling of bytes to what a network takes.

Every random number is a hash of the seed, the epoch and the index of the sample, so an image is
changed in the same way whichever batch it comes in and whoever asks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

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
) -> Tensor:
    """Shift every image by up to ``crop`` pixels at random, and mirror every other one.

    Args:
        images: (N, C, H, W), any type, on any device.
        samples: Index of every image's sample (N).
        seed: The run's seed.
        epoch: Epoch, from 0.
        crop: Pixels of zeros added on every side before H times W are cut out again.
        flip: Whether to mirror left and right, for every sample with probability one half.

    Returns:
        The changed images (N, C, H, W); ``images`` itself where nothing is asked for.
    """
    key = fold(seed, "augment", epoch)
    device = images.device
    if crop:
        top, left = (
            torch.from_numpy(uniform_integers(fold(key, side), samples, 2 * crop + 1)).to(device)
            for side in ("top", "left")
        )
        images = _crop(images, top, left, crop)
    if flip:
        mirrored = np.flatnonzero(uniform_integers(fold(key, "flip"), samples, 2))
        images = _flip(images, torch.from_numpy(mirrored).to(device))
    return images


def _crop(images: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    height, width = images.shape[-2:]
    padded = functional.pad(images, (padding,) * 4)
    # Every place to cut at is a view: (N, C, 2 padding + 1, 2 padding + 1, H, W).
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def _flip(images: Tensor, mirrored: Tensor) -> Tensor:
    return images.index_copy(0, mirrored, images.index_select(0, mirrored).flip(3))


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
