"""In which order the elements of maps lie in memory: channels first, or channels last.

Convolutions of many kernels are faster where the channels of a pixel lie side by side. Values and
shapes are the same; sums may be formed in another order, so the layout is part of the recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["channels_last", "in_plain_order", "lay_out", "like"]

_NUM_DIMENSIONS = 4  # of maps (N, C, H, W) and of the weights of convolutions on them


def channels_last(tensor: Tensor) -> Tensor:
    """Maps (N, C, H, W) with their channels last in memory; anything else as it is."""
    if tensor.ndim != _NUM_DIMENSIONS:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


def lay_out(module: nn.Module) -> None:
    """Put the channels of all convolutions' weights last, in place."""
    for parameter in module.parameters():
        parameter.data = channels_last(parameter.data)


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """The values of a tensor in the memory order of another of its shape."""
    if tensor.shape != other.shape or tensor.stride() == other.stride():
        return tensor
    return torch.empty_like(other, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


@contextmanager
def in_plain_order(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Tensors lie channels first inside: what is drawn for them depends on no layout."""
    moved = [tensor for tensor in tensors if not tensor.is_contiguous()]
    for tensor in moved:
        tensor.data = tensor.data.contiguous()
    yield
    for tensor in moved:
        tensor.data = channels_last(tensor.data)
