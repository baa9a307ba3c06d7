"""The channels of a run before any of them is there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ppll.channels.base import SlotLayout
from ppll.replicas.line import line_capacity, piece_layout

__all__ = ["Edge", "Key", "edges_of_line"]

Key: TypeAlias = tuple[str, int, int]
"""Name, sender and receiver of a channel."""


@dataclass(frozen=True)
class Edge:
    """A channel that is to be; its name and ends tell it from all others."""

    name: str
    sender: int
    receiver: int
    layout: SlotLayout
    capacity: int

    @property
    def key(self) -> Key:
        """What tells it from all others."""
        return self.name, self.sender, self.receiver

    @property
    def label(self) -> str:
        """The key in a word, under which its ends meet."""
        return f"{self.name}-{self.sender}-{self.receiver}"


def edges_of_line(ranks: Sequence[int], row_bytes: int) -> Iterator[Edge]:
    """Between the replicas of a stage that are next to each other.

    Args:
        ranks: All replicas of the stage, in order.
        row_bytes: Size of the longest row that they add up.
    """
    layout, capacity = piece_layout(row_bytes), line_capacity(len(ranks))
    for one, other in itertools.pairwise(ranks):
        yield Edge("up", one, other, layout, capacity)
        yield Edge("back", other, one, layout, capacity)
