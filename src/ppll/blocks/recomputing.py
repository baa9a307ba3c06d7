"""Activations that are computed again in the backward pass instead of being kept for it.

A block keeps the input of each of its layers, and of one layer at a time what lies between (Chen
et al., "Training deep nets with sublinear memory cost", 2016). The bits are those of keeping all:
a layer draws the same random numbers again, begins from the same buffers, and counts no batch
twice.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ["recomputed"]


def recomputed(module: nn.Module, features: Any) -> Any:
    """A layer's output from its input, which alone is kept for the backward."""
    return checkpoint(module, features, use_reentrant=False, context_fn=partial(_contexts, module))


def _contexts(
    module: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    buffers = _Buffers(module)
    return buffers, _CountedBefore(module, buffers)


@dataclass(frozen=True)
class _Buffer:
    """What a part of a layer holds under a name, and the value of that."""

    part: nn.Module
    name: str
    tensor: Tensor
    value: Tensor
    version: int

    @classmethod
    def of(cls, part: nn.Module, name: str) -> _Buffer:
        """As it is now."""
        tensor = part.get_buffer(name)
        return cls(part, name, tensor, tensor.clone(), tensor._version)

    def is_changed(self) -> bool:
        """Whether another tensor was assigned since, or this one changed in place."""
        is_assigned = self.part._buffers[self.name] is not self.tensor
        return is_assigned or self.tensor._version != self.version

    @torch.no_grad()
    def put_back(self) -> None:
        """Let the part hold the same tensor of the same value."""
        self.part._buffers[self.name] = self.tensor
        self.tensor.copy_(self.value)


class _Buffers(AbstractContextManager[None]):
    """What a forward changes of a layer's buffers, as it was before; batch norm's are left out.

    Args:
        module: The layer.
    """

    def __init__(self, module: nn.Module) -> None:
        parts = (part for part in module.modules() if not isinstance(part, _BatchNorm))
        self._before = [
            _Buffer.of(part, name)
            for part in parts
            for name, _ in part.named_buffers(recurse=False, remove_duplicate=False)
        ]
        self._after: list[_Buffer] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self._before = [buffer for buffer in self._before if buffer.is_changed()]

    def put_back(self) -> None:
        """Let the changed ones be as they were before the forward."""
        self._after = [_Buffer.of(buffer.part, buffer.name) for buffer in self._before]
        for buffer in self._before:
            buffer.put_back()

    def go_on(self) -> None:
        """Let them be as they were before ``put_back``."""
        for buffer in self._after:
            buffer.put_back()


class _CountedBefore(AbstractContextManager[None]):
    """A layer computes again and leaves its buffers as they are.

    Batch norm takes a batch into its running statistics in the forward only: with no momentum they
    stay as they are; not to track them at all would be another operation. It is entered once for
    every backward pass through the layer, of which a loss on a gradient makes two.

    Args:
        module: The layer.
        buffers: Those that its forward has changed.
    """

    def __init__(self, module: nn.Module, buffers: _Buffers) -> None:
        norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
        self._before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
        self._buffers = buffers

    def __enter__(self) -> None:
        self._buffers.put_back()
        for norm, _, _ in self._before:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *error: object) -> None:
        for norm, momentum, num_batches in self._before:
            norm.momentum, norm.num_batches_tracked = momentum, num_batches
        self._buffers.go_on()
