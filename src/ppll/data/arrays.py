"""Arrays as users have them, made into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppll.errors import DataError

__all__ = ["ArrayLike", "as_tensor", "channel_statistics", "check_finite"]

ArrayLike = Tensor | npt.NDArray[Any] | Sequence[Any]
"""What users have: a tensor, a numpy array, or nested lists."""

_WIDEST_BYTES: Final = 8
"""Of the numbers that torch has."""


def as_tensor(array: ArrayLike) -> Tensor:
    """The same values on the CPU, dense and in torch's types; not copied where they are so already.

    Raises:
        DataError: They are no numbers, or of a kind that torch does not have, or not all are
            there; or lists of different lengths.
    """
    if isinstance(array, Tensor):
        if array.layout != torch.strided or array.is_nested or array.is_meta:
            raise DataError(
                "found a tensor that is sparse, nested or on the meta device: give a dense one "
                "with values."
            )
        return array.cpu().contiguous()
    plain = _as_array(array)
    if plain.dtype.kind not in "iufb" or plain.dtype.itemsize > _WIDEST_BYTES:
        raise DataError(
            f"found an array of {plain.dtype}: give whole numbers or floating point of at most 64 "
            f"bits."
        )
    # torch takes native byte order and memory that may be written, and no negative strides.
    native = plain.astype(plain.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(native, requirements=["C", "W"]))


def _as_array(array: npt.NDArray[Any] | Sequence[Any]) -> npt.NDArray[Any]:
    if np.ma.is_masked(array):
        raise DataError(
            "found a masked array, whose masked values would count like the others: leave these "
            "samples out, or fill them, as by array.filled(0)."
        )
    try:
        return np.asarray(array)
    except ValueError:
        raise DataError(
            "found lists of different lengths where rows should be alike: pad or cut them."
        ) from None
    except (RuntimeError, TypeError) as error:  # of lists of tensors
        raise DataError(f"found a list that is no array ({error}): give one tensor.") from None


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
        raise DataError(
            f"{what} {index} holds a value that is not finite in float32: mend or leave it out."
        )


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
