"""Arrays as users have them, made into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppll.errors import DataError

__all__ = ["ArrayLike", "as_tensor", "channel_statistics", "check_finite"]

ArrayLike = Tensor | npt.NDArray[Any] | Sequence[Any]
"""What users have: a tensor, a numpy array, or nested lists."""


def as_tensor(array: ArrayLike) -> Tensor:
    """The same values on the CPU, dense and in torch's types; not copied where they are so already.

    Raises:
        DataError: They are no numbers, or lists of different lengths.
    """
    if isinstance(array, Tensor):
        return array.cpu().contiguous()
    try:
        plain = np.asarray(array)
    except ValueError:
        raise DataError(
            "found lists of different lengths where rows should be alike: pad or cut them."
        ) from None
    if plain.dtype.kind not in "iufb":
        raise DataError(f"found an array of {plain.dtype}: give whole numbers or floating point.")
    # torch takes native byte order and memory that may be written, and no negative strides.
    native = plain.astype(plain.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(native, requirements=["C", "W"]))


def check_finite(samples: Tensor, what: str = "sample") -> None:
    """Let floating point (N, ...) pass that is finite.

    Args:
        samples: Of inputs or targets.
        what: What one of them is, for the message.

    Raises:
        DataError: A sample is not; it is named.
    """
    finite = samples.isfinite()
    if not finite.all():
        index = int(torch.nonzero(~finite.flatten(1).all(1) if samples.dim() > 1 else ~finite)[0])
        raise DataError(f"{what} {index} holds a value that is not finite: mend or leave it out.")


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel of uint8 images, scaled to 0 to 1."""
    levels = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        # Counting is exact, so the result depends on no order of summation.
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).numpy()
        mean = float(np.average(levels, weights=counts))
        std = float(np.sqrt(np.average((levels - mean) ** 2, weights=counts)))
        means.append(mean)
        stds.append(std if std > 0 else 1.0)  # a channel of one value becomes 0
    return tuple(means), tuple(stds)
