"""What a rival computes: the contract between a workload and the systems that run it.

A workload is described once, small enough to hand to every process; there it becomes a ``Part``,
what one rank holds: chunks as plain modules, where its batches come from, the loss and the update.
The systems know nothing else, so they run real networks and emulated devices alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor, nn

from ppll.baselines.systems import Layout

__all__ = ["Batch", "Part", "Workload"]

_PROCESSOR: Final = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Batch:
    """What a rank reads of a batch; nothing where neither is its concern.

    Attributes:
        inputs: Of the first chunk: (N, ...).
        targets: Of the loss: (N), or (N, classes) where samples are mixed of two.
    """

    inputs: Tensor | None = None
    targets: Tensor | None = None


class Part(ABC):
    """What one rank computes.

    Attributes:
        chunks: Modules by the position of the chunk in the network, in forward order; each takes
            one tensor and returns one that is dense and no view.
        device: What it computes on.
        looks_every: After how many batches somebody looks at their losses.
    """

    chunks: Mapping[int, nn.Module]
    device: torch.device = _PROCESSOR
    looks_every: int = 1

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """Every batch of the run, in order."""

    @abstractmethod
    def examples(self, chunk: int) -> tuple[Tensor, Tensor]:
        """Input and output of a chunk for one micro-batch, without values."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a slice: a scalar."""

    @abstractmethod
    def update(self, step: int) -> None:
        """Use and clear the gradients of batch number ``step``, from 1."""

    @abstractmethod
    def check(self, loss: float, step: int) -> None:
        """Refuse to go on from a batch's loss that no update should be made from."""

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by their name in the whole network."""
        return {}

    def gradients(self) -> dict[str, Tensor]:
        """Copies of the gradients that there are, by the name of their parameter."""
        return {}


class Workload(ABC):
    """What is to be computed, as every process is told of it; can be pickled."""

    @abstractmethod
    def prepared(self, layout: Layout) -> Self:
        """A copy that has been checked and knows what every rank must know.

        Raises:
            UsageError: It cannot be run so.
        """

    def devices(self, layout: Layout) -> tuple[torch.device, ...]:
        """What every rank computes on: processors, unless the work knows better."""
        return (_PROCESSOR,) * layout.num_ranks

    @abstractmethod
    def part(self, layout: Layout, rank: int) -> Part:
        """What one rank computes; called in its process."""
