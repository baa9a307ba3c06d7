"""Parameters of a later block, as they were a fixed number of training messages ago (law 5).

A block that reads them learns from message t with the values after message t - lag, and before
that with the first ones, whatever the timing. The copies that are on their way belong to the
reader: they are saved with it, as soon as those of the checkpoint's step have all come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["InFlight", "SlowParameters", "flat_parameters"]


def flat_parameters(module: nn.Module, device: torch.device) -> Tensor:
    """Values of all parameters of a layer that others read, one after the other."""
    with torch.no_grad():
        values = [p.flatten() for p in module.parameters()]
        return torch.cat(values) if values else torch.zeros(0, device=device)


class InFlight:
    """The copies that were on their way when a checkpoint's mark passed.

    Args:
        copies: Those that had come, the oldest first.
        lag: How many there are in all.
    """

    def __init__(self, copies: Sequence[Tensor], lag: int) -> None:
        self.copies = list(copies)
        self._lag = lag

    @property
    def is_complete(self) -> bool:
        """Whether all have come."""
        return len(self.copies) == self._lag

    def stacked(self) -> Tensor:
        """All of them: (lag, parameters)."""
        assert self.is_complete
        return torch.stack(self.copies)


class SlowParameters:
    """What one block reads of a later one.

    Args:
        copies: The values for the next ``lag`` messages, the oldest first: (lag, parameters), on
            the block's device.
    """

    def __init__(self, copies: Tensor) -> None:
        self.lag = len(copies)
        self._device = copies.device
        self._copies = deque(copies.unbind())
        self._unfinished: list[InFlight] = []

    @property
    def has_next(self) -> bool:
        """Whether the values for the next message are there."""
        return bool(self._copies)

    @property
    def is_whole(self) -> bool:
        """Whether all values have come after the messages that were learned from: nothing more is
        sent, and every snapshot has all its copies."""
        return len(self._copies) == self.lag

    def put(self, values: Tensor) -> None:
        """Take in the values after one more message: (parameters)."""
        values = values.to(self._device)
        self._copies.append(values)
        for in_flight in self._unfinished:
            in_flight.copies.append(values)
        self._unfinished = [i for i in self._unfinished if not i.is_complete]

    def take(self) -> Tensor:
        """The values for the next message, which are there."""
        return self._copies.popleft()

    def snapshot(self) -> InFlight:
        """The copies that are on their way now; those that have not come follow."""
        in_flight = InFlight(list(self._copies), self.lag)
        if not in_flight.is_complete:
            self._unfinished.append(in_flight)
        return in_flight
