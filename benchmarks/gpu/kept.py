"""What autograd keeps for backward passes, counted as it is kept and let go."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Kept:
    """Bytes that autograd keeps: at the moment, and the most so far.

    Memory that several tensors share counts once, and parameters do not count.

    Args:
        own: Parameters and buffers.
    """

    def __init__(self, own: Iterable[Tensor]) -> None:
        self._own = {tensor.untyped_storage().data_ptr() for tensor in own}
        self._alive: dict[int, tuple[int, int]] = {}  # by address: how often kept, bytes
        self.bytes = self.most = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """What is kept inside counts."""
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda handle: handle.tensor):
            yield

    def _keep(self, tensor: Tensor) -> _Handle:
        handle, storage = _Handle(tensor), tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in self._own:
            count, size = self._alive.get(address, (0, storage.nbytes()))
            self._alive[address] = (count + 1, size)
            self.bytes += 0 if count else size
            self.most = max(self.most, self.bytes)
            weakref.finalize(handle, self._let_go, address)
        return handle

    def _let_go(self, address: int) -> None:
        count, size = self._alive.pop(address)
        if count > 1:
            self._alive[address] = (count - 1, size)
        else:
            self.bytes -= size


class _Handle:
    """Stands for a kept tensor in autograd's graph, and dies with it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
