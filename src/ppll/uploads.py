"""Copies to a device that nobody waits for."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["upload"]


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device; itself where that is the host.

    A GPU copies it from page-locked memory, in order with the work of its current stream, while
    the host goes on. Torch keeps that memory until the copy is done.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
