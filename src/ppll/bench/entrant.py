"""What takes part in a comparison, and what is measured of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

__all__ = ["LOCAL", "Entrant", "Timing", "name_of"]

LOCAL: Final = ("ppll", "sequential")
"""Local learning on several stages and on one; all others train end to end."""


@dataclass(frozen=True)
class Timing:
    """One timed run.

    Attributes:
        rate: Samples a second in steady state.
        peak_memory_bytes: Of each rank; on a GPU what torch had allocated there.
        base_memory_bytes: Of each rank, before it built anything, where it is known.
        bytes_sent: Of each rank for a batch, where it was counted.
        busy_fraction: Of each stage; PPLL on processors only.
        weights_sha256: PPLL only.
    """

    rate: float
    peak_memory_bytes: tuple[int, ...]
    base_memory_bytes: tuple[int, ...] | None = None
    bytes_sent: tuple[int, ...] = ()
    busy_fraction: tuple[float, ...] | None = None
    weights_sha256: str | None = None


def name_of(system: str, microbatches: int) -> str:
    """A system and in how many pieces it takes a batch."""
    pieces = "messages" if system in LOCAL else "micro-batches"
    return system + (f" with {microbatches} {pieces}" * (microbatches > 1))


class Entrant(ABC):
    """One system as it takes part.

    Attributes:
        system: Its name.
        stages: Processes that train.
        microbatches: Pieces that a batch travels in.
        devices: What each computes on, such as ``"cpu"`` or ``"cuda:0"``.
        bytes_sent: Of each rank for a batch, where it is known beforehand.
    """

    system: str
    stages: int
    microbatches: int
    devices: tuple[str, ...]
    bytes_sent: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The system and in how many pieces it takes a batch."""
        return name_of(self.system, self.microbatches)

    @abstractmethod
    def check(self) -> None:
        """See that there is nothing in the way; nothing is started.

        Raises:
            UsageError: It cannot take part so.
        """

    @abstractmethod
    def timed(self) -> Timing:
        """Train some batches."""

    @abstractmethod
    def accuracy(self, epochs: int) -> float:
        """Train for so many epochs; share of test samples that the final output gets right."""
