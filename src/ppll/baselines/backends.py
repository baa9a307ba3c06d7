"""What the ranks of a rival talk by: the one choice that follows from their devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import distributed as dist

from ppll.errors import RecipeError

__all__ = ["backend_of"]


def backend_of(system: str, devices: Sequence[torch.device]) -> Literal["gloo", "nccl"] | None:
    """The backend of ``torch.distributed`` for ranks on these devices; none for a single rank.

    Args:
        system: Name of the rival.
        devices: Of every rank.

    Raises:
        RecipeError: There is none: some ranks are on GPUs and some are not, two share a GPU, or
            torch was built without NCCL.
    """
    if len(devices) == 1:
        return None
    kinds = {device.type for device in devices}
    if kinds == {"cpu"}:
        return "gloo"
    if len(kinds) > 1:
        places = ", ".join(f"rank {rank} on {device}" for rank, device in enumerate(devices))
        raise RecipeError(
            f"{system} has {places}, but nothing carries its messages between processors and GPUs: "
            f'set runtime.devices = "cpu", or name a GPU for every rank.'
        )
    if shared := _shared(devices):
        raise RecipeError(
            f"{system} would have {shared}, but NCCL takes one rank a GPU: ask for no more ranks "
            f"than there are GPUs (--stages), name a GPU of its own for every rank, or set "
            f'runtime.devices = "cpu".'
        )
    if not dist.is_nccl_available():
        raise RecipeError(
            f"{system} on GPUs needs NCCL, which this torch ({torch.__version__}) was built "
            f'without: install one that has it, or set runtime.devices = "cpu".'
        )
    return "nccl"


def _shared(devices: Sequence[torch.device]) -> str:
    """Which ranks share which GPU, in words; empty where none do."""
    found = []
    for device in dict.fromkeys(devices):
        ranks = [str(rank) for rank, other in enumerate(devices) if other == device]
        if len(ranks) > 1:
            found.append(f"ranks {', '.join(ranks[:-1])} and {ranks[-1]} on {device}")
    return ", ".join(found)
