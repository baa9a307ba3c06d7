"""What the replicas of a block have in common after every batch.

A replica's gradients are those of its shard's share of the batch's loss, so their sum is the
gradient of the whole batch, and every replica makes the same update. Buffers (the statistics of
batch norm) are those of the first replica, as in ``torch.nn.parallel.DistributedDataParallel``
with ``broadcast_buffers``. What one replica leaves out, all do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ppll.averages import Averages
from ppll.block_modules import BlockModules

__all__ = ["AddUp", "Alone", "Exchange", "largest_row_bytes", "rows_of"]

AddUp: TypeAlias = Callable[[Sequence[Tensor]], list[Tensor]]
"""Sums of tensors over all replicas, of the same types and shapes; all must ask for the same."""


class Alone:
    """What a block without replicas has in common with them: only its own."""

    def kept(self, modules: BlockModules) -> dict[str, nn.Parameter]:
        """What the optimizer updates, by name."""
        return dict(modules.named_parameters())

    def load(self, modules: BlockModules, tensors: Mapping[str, Tensor]) -> None:
        """Take over saved parameters and buffers.

        Raises:
            ModelError: A tensor is missing or has another shape.
        """
        modules.load(tensors)

    def agree(self, *, leaves_out: bool, ends_batch: bool) -> bool:  # noqa: ARG002
        """Before a backward pass: whether the batch is left out."""
        return leaves_out

    def gather(self, *, leaves_out: bool) -> bool:
        """Whether the batch is left out, as ``Exchange.gather``."""
        return leaves_out

    def total(self, counts: Tensor) -> Tensor:
        """The counts as they are."""
        return counts

    def norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """That of a block's whole gradient (scalar)."""
        return nn.utils.get_total_norm(list(gradients.values()))

    def whole(self, named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Parameters, buffers and what goes with parameters, by name, as one replica has them."""
        return iter(named)

    def own(self, named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """What this replica keeps of them."""
        return dict(named)

    def evaluated(self, averages: Averages | None) -> AbstractContextManager[None]:
        """Evaluates with the averages in place of the parameters, where there are some."""
        return nullcontext() if averages is None else averages.in_place()

    def end_evaluation(self, averages: Averages | None) -> None:
        """An evaluation ends, in every replica."""


class Exchange(Alone):
    """One block's part in what its replicas add up.

    Args:
        modules: What the block computes with.
        add_up: Adds up tensors of all replicas.
        is_first: Whether this is the first replica, whose buffers count.
    """

    def __init__(self, modules: BlockModules, add_up: AddUp, *, is_first: bool) -> None:
        self._trained = list(_trained(modules))
        self._buffers = list(_buffers(modules))
        self._add_up = add_up
        self._is_first = is_first

    def gather(self, *, leaves_out: bool) -> bool:
        """A batch ends: make gradients the whole batch's, and buffers the first replica's.

        Args:
            leaves_out: Whether this replica leaves the batch out.

        Returns:
            Whether any replica does, so that all have to.
        """
        with torch.no_grad():
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._trained]
            buffers = [b if self._is_first else torch.zeros_like(b) for b in self._buffers]
            *totals, num_left_out = self._add_up([*gradients, *buffers, _count(leaves_out)])
            for parameter, total in zip(self._trained, totals, strict=False):
                _set_gradient(parameter, total)
            for buffer, total in zip(self._buffers, totals[len(self._trained) :], strict=True):
                buffer.copy_(total)
        return bool(num_left_out)

    def total(self, counts: Tensor) -> Tensor:
        """Counts (any number, float64) over all replicas."""
        return self._add_up([counts])[0]


def rows_of(tensors: Sequence[Tensor]) -> dict[torch.dtype, list[int]]:
    """Which tensors are added up in one row: those of the same type, by position."""
    rows: dict[torch.dtype, list[int]] = {}
    for index, tensor in enumerate(tensors):
        rows.setdefault(tensor.dtype, []).append(index)
    return rows


def largest_row_bytes(modules: BlockModules) -> int:
    """Size of the largest row that a block's ``Exchange`` asks for."""
    tensors = [*_trained(modules), *_buffers(modules), _count(False)]
    rows = rows_of(tensors).values()
    return max(sum(tensors[index].nbytes for index in row) for row in rows)


def _trained(modules: BlockModules) -> Iterator[Tensor]:
    return (p for _, p in modules.named_parameters() if p.requires_grad)


def _buffers(modules: BlockModules) -> Iterator[Tensor]:
    return (buffer for _, module in modules.named() for buffer in module.buffers())


def _count(one: bool) -> Tensor:
    return torch.tensor([one], dtype=torch.int64)


def _set_gradient(parameter: Tensor, total: Tensor) -> None:
    """A parameter that got no gradient in any replica keeps none: its optimizer passes it over."""
    if parameter.grad is not None:
        parameter.grad.copy_(total)
    elif total.any():
        parameter.grad = total.clone()
