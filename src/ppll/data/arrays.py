"""Arrays as users have them, made into tensors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppll.errors import DataError

__all__ = ["ArrayLike", "as_tensor", "channel_statistics", "check_finite", "describe"]
__all__ += ["warn_of_order"]

_log = logging.getLogger(__name__)

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


def describe(tensor: Tensor) -> str:
    """Its type and shape, for messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def warn_of_order(inputs: Tensor) -> None:
    """Point at images (N, H, W, C), which would be trained on as narrow ones of many channels."""
    if inputs.dim() == 4 and inputs.shape[3] in (1, 3) and inputs.shape[1] > 4:
        _log.warning(
            "train samples are %s, as if channels were last, but images are (N, C, H, W): unless "
            "they have %d channels, give inputs.transpose(0, 3, 1, 2) of NumPy, or "
            "inputs.permute(0, 3, 1, 2) of torch",
            describe(inputs),
            inputs.shape[1],
        )


def check_finite(samples: Tensor) -> None:
    """Let floating point (N, ...) pass that is finite.

    Raises:
        DataError: A sample is not; it is named.
    """
    finite = samples.isfinite()
    if not finite.all():
        index = int(torch.nonzero(~finite.flatten(1).all(1) if samples.dim() > 1 else ~finite)[0])
        raise DataError(f"sample {index} holds a value that is not finite: mend or leave it out.")


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
