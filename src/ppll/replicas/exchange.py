"""What the replicas of a block have in common after every batch.

A replica's gradients are those of its shard's share of the batch's loss, so their sum is the
gradient of the whole batch, and every replica makes the same update. They are added up in buckets,
each as soon as the backward pass has made it, the last layers' first. A parameter that has no
gradient in any replica keeps none, so that its optimizer passes it over. Buffers (the statistics of
batch norm) are those of the first replica, as in ``torch.nn.parallel.DistributedDataParallel``
with ``broadcast_buffers``. What one replica leaves out, all do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from ppll.blocks.alone import Alone
from ppll.blocks.modules import BlockModules
from ppll.replicas.adding import Adder
from ppll.simulation.line_times import BUCKET_BYTES

__all__ = ["NOTHING", "Exchange", "buckets_of", "largest_row_bytes", "rows_of"]

NOTHING: Final = -0.0
"""In the place of a gradient that is not there: it changes no bit of any number that it is added
to, where 0.0 makes 0.0 of -0.0."""


class Exchange(Alone):
    """One block's part in what its replicas add up.

    Args:
        modules: What the block computes with.
        adder: Adds up tensors of all replicas.
        is_first: Whether this is the first replica, whose buffers count.
        bucket_bytes: Least size of the gradients that are added up at once, but for the last.
        but_for: Names of parameters whose gradients are added up elsewhere.
    """

    def __init__(
        self,
        modules: BlockModules,
        adder: Adder,
        *,
        is_first: bool,
        bucket_bytes: int = BUCKET_BYTES,
        but_for: Collection[str] = (),
    ) -> None:
        self._buckets = buckets_of(list(_trained(modules, but_for)), bucket_bytes)
        self._updated = [p for p in self.kept(modules).values() if p.requires_grad]
        self._found: set[nn.Parameter] = set()
        """What has a gradient in this replica; nothing between batches."""
        self._buffers = list(_buffers(modules))
        self._name = next(name for name, _ in modules.named())
        self._adder = adder
        self._is_first = is_first
        self._missing: list[int] = []
        """Of each bucket, gradients that are not there yet; nothing between backward passes."""
        self._num_started = 0
        for index, bucket in enumerate(self._buckets):
            for parameter in bucket:
                note = partial(self._note, index)
                parameter.register_post_accumulate_grad_hook(note)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """The last backward pass of a batch begins: what it makes is added up meanwhile."""
        self._missing = [len(bucket) for bucket in self._buckets]

    def gather(self, *, leaves_out: bool) -> bool:
        """A batch ends: make gradients the whole batch's, and buffers the first replica's.

        Whether a parameter has a gradient depends on all replicas together, as if they were one.

        Args:
            leaves_out: Whether this replica leaves the batch out.

        Returns:
            Whether any replica does, so that all have to.

        Raises:
            ChannelClosed: A replica is gone.
        """
        self._missing = []
        for index in range(self._num_started, len(self._buckets)):
            self._start(index)
        self._num_started = 0
        buffers = [b if self._is_first else torch.zeros_like(b) for b in self._buffers]
        counts = _counts(leaves_out, *(p in self._found for p in self._updated))
        *totals, counts = self._sums([*buffers, counts], "batch")
        with torch.no_grad():
            for buffer, total in zip(self._buffers, totals, strict=True):
                buffer.copy_(total)
        num_left_out, *nums_found = counts.tolist()
        self._drop(nums_found)
        return bool(num_left_out)

    def total(self, counts: Tensor) -> Tensor:
        """Counts (any number, float64) over all replicas."""
        return self._sums([counts], "counts")[0]

    def _sums(self, tensors: Sequence[Tensor], what: str) -> list[Tensor]:
        found: list[Tensor] = []
        self._adder.start(tensors, f"{what} of {self._name}", found.extend)
        self._adder.finish()
        return found

    def _drop(self, nums_found: Sequence[int]) -> None:
        """Let parameters without a gradient have none, given how many replicas have one."""
        for parameter, num_found in zip(self._updated, nums_found, strict=True):
            if not num_found:
                parameter.grad = None
        self._found.clear()

    def _note(self, index: int, parameter: Tensor) -> None:
        """A gradient is there. Buckets are added up in their order, the same in every replica."""
        del parameter
        if not self._missing:
            return
        self._missing[index] -= 1
        while self._num_started < len(self._buckets) and not self._missing[self._num_started]:
            self._start(self._num_started)
            self._num_started += 1

    def _start(self, index: int) -> None:
        bucket = self._buckets[index]
        self._found.update(p for p in bucket if p.grad is not None)
        gradients = [torch.full_like(p, NOTHING) if p.grad is None else p.grad for p in bucket]
        what = f"bucket {index} of {self._name}"
        self._adder.start(gradients, what, partial(_set_gradients, bucket))


def buckets_of(parameters: Sequence[nn.Parameter], least_bytes: int) -> list[list[nn.Parameter]]:
    """Parameters in buckets, each of so many bytes or more but for the last, the last first."""
    buckets: list[list[nn.Parameter]] = [[]]
    for parameter in reversed(parameters):
        if sum(p.nbytes for p in buckets[-1]) >= least_bytes:
            buckets.append([])
        buckets[-1].append(parameter)
    return buckets


def rows_of(tensors: Sequence[Tensor]) -> dict[torch.dtype, list[int]]:
    """Which tensors are added up in one row: those of the same type, by position."""
    rows: dict[torch.dtype, list[int]] = {}
    for index, tensor in enumerate(tensors):
        rows.setdefault(tensor.dtype, []).append(index)
    return rows


def largest_row_bytes(modules: BlockModules) -> int:
    """Size of the largest row that a block's ``Exchange`` asks for."""
    trained = list(_trained(modules))
    asked: list[Sequence[Tensor]] = [*buckets_of(trained, BUCKET_BYTES)]
    asked.append([*_buffers(modules), _counts(False, *(False for _ in trained))])
    rows = [[ts[i] for i in row] for ts in asked for row in rows_of(ts).values()]
    return max(sum(tensor.nbytes for tensor in row) for row in rows)


def _trained(modules: BlockModules, but_for: Collection[str] = ()) -> Iterator[nn.Parameter]:
    named = modules.named_parameters()
    return (p for name, p in named if p.requires_grad and name not in but_for)


def _buffers(modules: BlockModules) -> Iterator[Tensor]:
    return (buffer for _, module in modules.named() for buffer in module.buffers())


def _counts(*flags: bool) -> Tensor:
    return torch.tensor(flags, dtype=torch.int64)


def _set_gradients(bucket: Sequence[Tensor], totals: Sequence[Tensor]) -> None:
    """The memory of the gradients that were there is left alone: others may be views of it, and
    the backward pass may still read it."""
    for parameter, total in zip(bucket, totals, strict=True):
        like = parameter if parameter.grad is None else parameter.grad
        parameter.grad = torch.empty_like(like).copy_(total)
