"""All that is done to images in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppll.data.augmentation import Augmentation
from ppll.data.augmentation.draws import Draws
from ppll.data.augmentation.mixing import draw, own_weights


def augment(
    images: Tensor,
    samples: npt.NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    fill: Sequence[int] | None = None,
    **options: Any,
) -> Tensor:
    """Images (N, C, H, W) of some samples as an epoch has them, made where they are."""
    height, width = images.shape[-2:]
    augmentation = Augmentation(**options)
    numbers = augmentation.draw(samples, seed=seed, epoch=epoch, height=height, width=width)
    draws = Draws.on(images.device, samples, numbers)
    paint = None if fill is None else torch.tensor(fill, dtype=images.dtype, device=images.device)
    return augmentation.apply(images, draws, seed=seed, epoch=epoch, fill=paint)


def weights_of(
    samples: npt.NDArray[np.int64], *, height: int, width: int, **options: Any
) -> Tensor:
    """How much every pixel is its sample's own: (N, H, W)."""
    drawn = draw(samples, height=height, width=width, **options)
    numbers = {name: torch.from_numpy(values) for name, values in drawn.items()}
    weights = own_weights(numbers, height=height, width=width)
    return weights.expand(-1, height, width)
