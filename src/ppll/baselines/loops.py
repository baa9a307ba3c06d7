"""Rivals that hold the whole network: plain backpropagation, and replicas of it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ppll.baselines.work import Batch, Part

__all__ = ["Backprop", "Replicas", "Runner"]


class Runner(Protocol):
    """What makes the gradients of a batch."""

    @property
    def bytes_sent(self) -> int:
        """Bytes of all tensors handed to the transport so far."""
        ...

    def step(self, batch: Batch) -> Tensor | None:
        """Leave the gradients of a batch's mean loss in the parameters.

        Returns:
            The loss (scalar, without history), where this rank knows it; on its device, so that
            nobody has to wait for it.
        """
        ...


class Backprop:
    """One process that computes everything.

    Args:
        part: The whole network.
    """

    bytes_sent = 0

    def __init__(self, part: Part) -> None:
        self._part = part
        self._model: nn.Module = nn.Sequential(*part.chunks.values())

    def step(self, batch: Batch) -> Tensor | None:
        """Forward and backward of the whole batch, or of this replica's slice."""
        assert batch.inputs is not None
        assert batch.targets is not None
        loss = self._part.loss(self._model(batch.inputs), batch.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            return loss.clone()


class Replicas(Backprop):
    """``DistributedDataParallel`` as its documentation has it: gradients travel while others are
    still being computed, and lie in the buckets that travel.

    ``bytes_sent`` counts what is handed to the all-reduce, once each; a ring sends it nearly twice.

    Args:
        part: The whole network; the first rank's parameters and buffers are used by all.
        rank: Who this is.
    """

    def __init__(self, part: Part, rank: int) -> None:
        super().__init__(part)
        shared: list[Tensor] = list(self._model.parameters())
        if rank == 0:
            shared += self._model.buffers()  # sent to the others before every forward
        self._bytes_a_step = sum(tensor.nbytes for tensor in shared)
        gpu = [part.device] if part.device.type == "cuda" else None
        self._model = DistributedDataParallel(
            self._model, device_ids=gpu, gradient_as_bucket_view=True
        )

    def step(self, batch: Batch) -> Tensor | None:
        """Gradients of the whole batch, from this replica's slice and all others'."""
        self.bytes_sent += self._bytes_a_step
        return super().step(batch)
