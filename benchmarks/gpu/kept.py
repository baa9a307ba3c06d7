"""What autograd keeps for backward passes, counted as it is kept and let go."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ppll.blocks.block import Block
from ppll.blocks.blueprint import Blueprint
from ppll.blocks.modules import named_tensors
from ppll.message import Kind, Message
from ppll.models.initialising import initialise


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


def kept_in_a_step(blueprint: Blueprint, fields: dict[str, Tensor]) -> int:
    """The most bytes that are kept in a training step of all blocks, one after the other.

    Args:
        blueprint: The network cut into blocks.
        fields: A training batch, on the CPU.
    """
    blocks = [_with_values(blueprint, index) for index in range(blueprint.num_blocks)]
    kept = Kept(t for block in blocks for _, t in block.modules.named_tensors())
    message = Message(kind=Kind.TRAIN, sequence=0, step=1, tensors=fields)
    with kept.counted():
        for block in blocks:
            message = block.forward(message)
            block.learn()
    return kept.most


def _with_values(blueprint: Blueprint, index: int) -> Block:
    """A block with first values; those of a model that has some are its own."""
    block, given = (
        blueprint.build_block(index, torch.device("cpu")),
        blueprint.network.held_values(),
    )
    for prefix, module in block.modules.named():
        own = named_tensors(prefix, module)
        if own.keys() <= given.keys():
            with torch.no_grad():
                for name, tensor in own.items():
                    tensor.copy_(given[name])
        else:
            initialise(module, prefix, 0, given)
    return block
