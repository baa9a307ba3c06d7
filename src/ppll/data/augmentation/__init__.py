"""What is done to training images: each by itself, then two by two, on whole batches.

Every random number is a hash of the seed, the epoch and the index of the sample, so an image is
changed in the same way whichever batch it comes in and whoever asks. Numbers are drawn on the
host; pixels change wherever they lie, with the same result, and the host does not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppll.data.augmentation.draws import Draws, Numbers, Samples
from ppll.data.augmentation.geometric import crop_at, cut_out, flipped
from ppll.data.augmentation.randaugment import randaugment as changed
from ppll.randomness import fold, uniform_integers

__all__ = ["Augmentation", "Normalisation"]


@dataclass(frozen=True)
class Augmentation:
    """Crop, mirror and change every image at random, and cut a square out of it, in this order.

    Attributes:
        crop: Pixels of zeros added on every side before H times W are cut out again.
        flip: Whether to mirror left and right, for every sample with probability one half.
        randaugment: Magnitude of RandAugment's operations, 0 to 10; 0 for none.
        randaugment_ops: How many of them an image goes through.
        cutout: Side in pixels of a square, anywhere, that is painted over; 0 for none.
    """

    crop: int = 0
    flip: bool = False
    randaugment: float = 0.0
    randaugment_ops: int = 2
    cutout: int = 0

    def draw(self, samples: Samples, *, seed: int, epoch: int, height: int, width: int) -> Numbers:
        """Where to crop, whether to mirror, and where to cut out.

        Args:
            samples: Indices (N).
            seed: The run's seed.
            epoch: Epoch, from 0.
            height: Of the images, in pixels.
            width: The same.
        """
        key = _key(seed, epoch)
        highs = {"top": 2 * self.crop + 1, "left": 2 * self.crop + 1} if self.crop else {}
        highs |= {"flip": 2} if self.flip else {}
        highs |= {"cutout row": height, "cutout column": width} if self.cutout else {}
        return {n: uniform_integers(fold(key, n), samples, high) for n, high in highs.items()}

    def apply(
        self,
        images: Tensor,
        draws: Draws,
        *,
        seed: int,
        epoch: int,
        fill: Tensor | None = None,
    ) -> Tensor:
        """Change every image as was drawn for it.

        Args:
            images: (N, C, H, W); of any type, but bytes where RandAugment changes them.
            draws: What ``draw`` has drawn for them, where they are.
            seed: The run's seed.
            epoch: Epoch, from 0.
            fill: Of every channel (C), like ``images``: what a square is painted with, and what
                RandAugment shifts in; 0 without.

        Returns:
            The changed images (N, C, H, W); ``images`` itself where nothing is asked for.
        """
        drawn = draws.numbers
        if self.crop:
            images = crop_at(images, drawn["top"], drawn["left"], padding=self.crop)
        if self.flip:
            images = flipped(images, drawn["flip"])
        if self.randaugment:
            images = changed(
                images,
                draws.samples,
                fold(_key(seed, epoch), "randaugment"),
                magnitude=self.randaugment,
                num_operations=self.randaugment_ops,
                fill=fill,
            )
        if self.cutout:
            row, column = drawn["cutout row"], drawn["cutout column"]
            images = cut_out(images, row, column, side=self.cutout, fill=fill)
        return images


def _key(seed: int, epoch: int) -> int:
    return fold(seed, "augment", epoch)


class Normalisation:
    """Bytes to float32 with mean 0 and deviation 1: ``(images / 255 - mean) / std``.

    Args:
        mean: Of every channel (C), 0 to 1.
        std: Standard deviation of every channel (C).
        device: Where the images are.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device | None = None
    ) -> None:
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
            for values in (mean, std)
        )
        # A tensor, since GPUs divide by a number as they multiply by its reciprocal, which rounds
        # in another way than processors do.
        self._white = torch.tensor(255, dtype=torch.float32, device=device)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise uint8 images (N, C, H, W)."""
        return (images / self._white).sub_(self._mean).div_(self._std)
