"""A block that sleeps where another computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ppll.baselines.sleeping import Sleeper
from ppll.message import FEATURES, TARGETS, Message
from ppll.methods.base import Method
from ppll.metrics import Counts, Tally
from ppll.replicas.adding import Adder
from ppll.simulation.line_times import made_evenly

__all__ = ["BATCH", "COUNT", "FLOAT_BYTES", "BlockTimes", "SleepingBlock"]

BATCH: Final = 64
"""Samples of a batch."""
FLOAT_BYTES: Final = torch.float32.itemsize
COUNT: Final = torch.tensor([0])
"""What replicas add up beside gradients."""


@dataclass(frozen=True)
class BlockTimes:
    """What an emulated block takes for a message; each of several replicas, for its shard.

    Attributes:
        forward_s: How long it sleeps in its forward.
        learn_s: How long it sleeps in its learning step.
        payload_bytes: Size of the features that it sends on.
        gradient_bytes: What replicas add up, made evenly while it learns.
    """

    forward_s: float = 0.0
    learn_s: float = 0.0
    payload_bytes: int = 0
    gradient_bytes: int = 0


class SleepingBlock:
    """Has the face of a ``ppll.blocks.block.Block`` and sleeps where that one computes."""

    def __init__(
        self, index: int, times: BlockTimes, row_bytes: int, sleeper: Sleeper, adder: Adder | None
    ) -> None:
        self.index = index
        self.device = torch.device("cpu")
        self.counts = Counts(self.device)
        self._times = times
        self._sleeper = sleeper
        self._adder = adder
        self._features = torch.zeros(BATCH, row_bytes // FLOAT_BYTES)
        self._gradient = torch.zeros(times.gradient_bytes // FLOAT_BYTES)

    def forward(self, message: Message) -> Message:
        """Hand on features of its own, as a block that computes does, after a while."""
        self._sleeper(self._times.forward_s)
        num_samples = message.tensors[TARGETS].shape[0]
        return message.with_tensors(**{FEATURES: self._features[:num_samples]})

    slow = None
    method = Method
    """Of which blocks exchange features alone."""

    def learn(self, *_: object) -> dict[str, Tensor]:
        """Take the time of a learning step; add up with other replicas as soon as it can be."""
        learn_s, start = self._times.learn_s, 0
        for seconds, num_bytes in made_evenly(learn_s, self._gradient.nbytes):
            self._sleeper(seconds)
            end = start + int(num_bytes) // FLOAT_BYTES
            self._add_up(self._gradient[start:end])
            start = end
        self._add_up(COUNT.clone())
        if self._adder is not None:
            self._adder.finish()
        return {}

    def _add_up(self, part: Tensor) -> None:
        def take(totals: list[Tensor]) -> None:
            part.copy_(totals[0])

        if self._adder is not None:
            self._adder.start([part], f"part of {self.index}", take)

    def take_training(self) -> Tally:
        """Nothing was counted."""
        return self.counts.take()

    def evaluate(self) -> None:
        """Nothing is evaluated."""
