"""Emulated devices: chunks that sleep where a network computes; all else is real.

A device that computes needs no processor of its host, so any number of them can be emulated on
two cores, with real processes and tensors of true size between them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor

from ppll.baselines.sleeping import EmulatedChunk, Sleeper
from ppll.baselines.systems import Layout
from ppll.baselines.work import Batch, Part, Workload
from ppll.errors import RecipeError

__all__ = ["EmulatedWork"]

_FLOAT_BYTES: Final = torch.float32.itemsize


@dataclass(frozen=True)
class EmulatedWork(Workload):
    """Chunks that take a given time for a whole batch; a slice takes its share of it.

    That a micro-batch of a batch's m-th part takes an m-th of the time is generous to pipelines:
    on real devices smaller slices are less efficient.

    Attributes:
        forward_s: Seconds of every chunk's forward.
        backward_s: Seconds of every chunk's backward.
        update_s: Seconds of every chunk's update.
        payload_bytes: Size of every chunk's output; that of the last goes nowhere.
        parameter_bytes: Size of every chunk's gradients, which replicas exchange.
        weight_share: Part of a backward that makes the weights' gradients; the first chunk, whose
            input needs none, spends all of it there.

    Raises:
        RecipeError: The rows differ in length or a value is out of range.
    """

    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    update_s: tuple[float, ...]
    payload_bytes: tuple[int, ...]
    parameter_bytes: tuple[int, ...]
    weight_share: float = 0.5

    def __post_init__(self) -> None:
        rows = {
            "forward_s": self.forward_s,
            "backward_s": self.backward_s,
            "update_s": self.update_s,
            "payload_bytes": self.payload_bytes,
            "parameter_bytes": self.parameter_bytes,
        }
        for name, row in rows.items():
            _check_row(name, row, len(self.forward_s))
        if not 0 <= self.weight_share <= 1:
            raise RecipeError(f"weight_share is a share from 0 to 1, found {self.weight_share:g}.")

    @classmethod
    def even(
        cls,
        num_chunks: int,
        *,
        forward_s: float,
        backward_s: float,
        update_s: float = 0.0,
        payload_bytes: int = 0,
        parameter_bytes: int = 0,
        weight_share: float = 0.5,
    ) -> Self:
        """Chunks that are all alike.

        Args:
            num_chunks: How many; a rank of an interleaved schedule has two.
            forward_s: Seconds of all their forwards together.
            backward_s: Seconds of all their backwards.
            update_s: Seconds of all their updates.
            payload_bytes: Size of each one's output.
            parameter_bytes: Size of all their gradients.
            weight_share: Part of a backward that makes the weights' gradients.
        """
        return cls(
            (forward_s / num_chunks,) * num_chunks,
            (backward_s / num_chunks,) * num_chunks,
            (update_s / num_chunks,) * num_chunks,
            (payload_bytes,) * num_chunks,
            (parameter_bytes // num_chunks,) * num_chunks,
            weight_share,
        )

    @property
    def num_chunks(self) -> int:
        """How many chunks there are."""
        return len(self.forward_s)

    def prepared(self, layout: Layout) -> Self:
        """Itself, when the rival has a place for every chunk."""
        if layout.system.kind == "pipeline" and layout.num_chunks != self.num_chunks:
            raise RecipeError(
                f"{layout.system.name} on {layout.num_ranks} ranks runs {layout.num_chunks} "
                f"chunks, found times of {self.num_chunks}: give as many as it runs."
            )
        return self

    def part(self, layout: Layout, rank: int) -> Part:
        """What one emulated device computes."""
        return _EmulatedPart(self, layout, rank)


def _check_row(name: str, row: tuple[float, ...], length: int) -> None:
    if not row or len(row) != length:
        raise RecipeError(f"{name} has {len(row)} values, but forward_s has {length}: one a chunk.")
    for value in row:
        if not (math.isfinite(value) and value >= 0):
            raise RecipeError(f"{name} must be finite and not negative, found {value}.")


class _EmulatedPart(Part):
    """One emulated device's chunks."""

    def __init__(self, work: EmulatedWork, layout: Layout, rank: int) -> None:
        torch.set_num_threads(1)
        self._sleeper = Sleeper()
        self._work, self._layout, self._rank = work, layout, rank
        is_cut = layout.system.kind == "pipeline"
        indices = layout.chunks_of(rank) if is_cut else tuple(range(work.num_chunks))
        self.chunks = {index: self._chunk(index) for index in indices}
        self._update_s = sum(work.update_s[index] for index in indices)

    def batches(self) -> Iterator[Batch]:
        """Zeros; a row is a slice."""
        num_rows = self._layout.num_microbatches
        batch = Batch(torch.zeros(num_rows, 1), torch.zeros(num_rows, 1))
        for _ in range(self._layout.num_batches):
            yield batch

    def examples(self, chunk: int) -> tuple[Tensor, Tensor]:
        """Rows of as many bytes as cross the boundaries of a chunk for a slice."""
        inputs = self._row(chunk - 1) if chunk > 0 else torch.empty(1, 1)
        is_last = chunk == self._work.num_chunks - 1
        return inputs, torch.empty(1, 1) if is_last else self._row(chunk)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """A sum of very little."""
        return (outputs - targets).sum()

    def check(self, _loss: float, _step: int) -> None:
        """Any will do."""

    def update(self, _step: int) -> None:
        """Forget the gradients, after a while."""
        self._sleeper(self._update_s)
        for chunk in self.chunks.values():
            chunk.zero_grad()

    def _row(self, chunk: int) -> Tensor:
        num_floats = self._work.payload_bytes[chunk] / _FLOAT_BYTES / self._layout.num_slices
        return torch.empty(1, max(1, math.ceil(num_floats)))

    def _chunk(self, index: int) -> EmulatedChunk:
        work, num_slices = self._work, self._layout.num_slices
        # Only replicas exchange gradients; elsewhere adding them up is part of the given times.
        exchanged = self._layout.system.kind == "replicas"
        # Only some run the halves apart; for the others one sleep will do.
        weight_share = work.weight_share if self._layout.system.splits else 1.0
        return EmulatedChunk(
            self._sleeper,
            work.forward_s[index] / num_slices,
            work.backward_s[index] / num_slices,
            weight_share,
            *self.examples(index),
            work.parameter_bytes[index] if exchanged else 0,
        )
