"""Where a data set lies, and its batches are made."""

from __future__ import annotations

from typing import Final

import torch

from ppll.data.preparation import PreparedData
from ppll.errors import DataError
from ppll.sections import DataHome

__all__ = ["home_of"]

_SHARE: Final = 4
"""``"auto"`` takes no more than one part in so many of a GPU's free memory."""


def home_of(data: PreparedData, wanted: DataHome, device: torch.device) -> torch.device:
    """Where a data set is to lie.

    Args:
        data: The data set.
        wanted: What the recipe says (``runtime.data``).
        device: What the first stage computes on.

    Raises:
        DataError: It is to lie on a GPU that has not enough free memory.
    """
    if wanted == "host" or device.type != "cuda":
        return torch.device("cpu")
    needed, (free, _) = num_bytes(data), torch.cuda.mem_get_info(device)
    if wanted == "auto":
        return device if needed * _SHARE < free else torch.device("cpu")
    if needed >= free:
        raise DataError(
            f"the data set takes {needed / 2**20:,.0f} MiB, but {device} has {free / 2**20:,.0f} "
            f'MiB of free memory: set runtime.data = "host".'
        )
    return device


def num_bytes(data: PreparedData) -> int:
    """What inputs and targets take."""
    splits = (data.dataset.train, data.dataset.test)
    return sum(split.inputs.nbytes + split.targets.nbytes for split in splits)
