"""The schedules of ``torch.distributed.pipelining``, run as its documentation has it.

One ``PipelineStage`` a chunk, the shapes given beforehand, and one ``step`` of the schedule a
batch: it slices the batch, sends and receives without waiting where its order allows, and leaves
the gradient of the mean loss in the parameters.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import pipelining
from torch.distributed.pipelining import PipelineStage

from ppll.baselines.systems import Layout
from ppll.baselines.work import Batch, Part

__all__ = ["Pipeline"]


class _CountingStage(PipelineStage):
    """Counts the bytes that it hands to the transport."""

    bytes_sent = 0

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        return self._counted(super().get_fwd_send_ops(fwd_chunk_id))

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        return self._counted(super().get_bwd_send_ops(bwd_chunk_id))

    def _counted(self, operations: list[dist.P2POp]) -> list[dist.P2POp]:
        self.bytes_sent += sum(operation.tensor.nbytes for operation in operations)
        return operations


class Pipeline:
    """One rank of a pipeline.

    Args:
        part: The rank's chunks.
        layout: The schedule, ranks and micro-batches.
        rank: Who this is.
    """

    def __init__(self, part: Part, layout: Layout, rank: int) -> None:
        # It would print its whole plan when a neighbour is gone.
        logging.getLogger(pipelining.__name__).setLevel(logging.CRITICAL + 1)
        self._stages = [_stage(part, layout, chunk) for chunk in part.chunks]
        self._reads_inputs = layout.reads_inputs(rank)
        schedule: Any = getattr(pipelining, layout.system.schedule)
        is_single = issubclass(schedule, pipelining.schedules.PipelineScheduleSingle)
        stages = self._stages[0] if is_single else self._stages
        self._schedule = schedule(stages, layout.num_microbatches, loss_fn=part.loss)

    @property
    def bytes_sent(self) -> int:
        """Bytes of all features and gradients handed to the transport so far."""
        return sum(stage.bytes_sent for stage in self._stages)

    def step(self, batch: Batch) -> Tensor | None:
        """All micro-batches forward and backward, in the schedule's order."""
        inputs = (batch.inputs,) if self._reads_inputs else ()
        losses: list[Tensor] = []
        self._schedule.step(*inputs, target=batch.targets, losses=losses, return_outputs=False)
        with torch.no_grad():
            return torch.stack(losses).mean() if losses else None


def _stage(part: Part, layout: Layout, chunk: int) -> _CountingStage:
    """A chunk with the shapes of a micro-batch.

    Without them torch finds out by a trial run, and batch norm would count it.
    """
    inputs, outputs = part.examples(chunk)
    return _CountingStage(
        part.chunks[chunk],
        chunk,
        layout.num_chunks,
        part.device,
        input_args=inputs.requires_grad_(chunk > 0),
        output_args=outputs.requires_grad_(),
    )
