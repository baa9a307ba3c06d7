"""The channels of a pipeline of doubles: which there are, and how processes of one host join them.

``ppll.connections`` does the same for a run, from its recipe and network.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from ppll.channels.base import SlotLayout
from ppll.channels.shared import SharedReceiveEnd, SharedSendEnd
from ppll.clusters import crossings
from ppll.mesh import Mesh
from ppll.replicas import line_capacity, piece_layout

__all__ = ["Edge", "Key", "edges_between", "edges_of_line", "join_shared"]

Key: TypeAlias = tuple[str, int, int]
"""Name, sender and receiver of a channel."""

_CONNECT_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True)
class Edge:
    """A channel; its name and ends tell it from all others."""

    name: str
    sender: int
    receiver: int
    layout: SlotLayout
    capacity: int

    @property
    def key(self) -> Key:
        """What tells it from all others."""
        return self.name, self.sender, self.receiver


def edges_between(mesh: Mesh, stage: int, layout: SlotLayout, capacity: int) -> Iterator[Edge]:
    """From the replicas of the stage before to those of a stage."""
    those, these = mesh.ranks(stage - 1), mesh.ranks(stage)
    for i, j in crossings(len(those), len(these)):
        yield Edge("features", those[i], these[j], layout, capacity)


def edges_of_line(mesh: Mesh, stage: int, row_bytes: int) -> Iterator[Edge]:
    """Between the replicas of a stage that are next to each other."""
    ranks = mesh.ranks(stage)
    layout, capacity = piece_layout(row_bytes), line_capacity(len(ranks))
    for one, other in itertools.pairwise(ranks):
        yield Edge("up", one, other, layout, capacity)
        yield Edge("back", other, one, layout, capacity)


def join_shared(
    edges: Sequence[Edge], rank: int, folder: Path, secret: bytes, stack: ExitStack
) -> dict[Key, Any]:
    """A rank's ends in shared memory: it listens, then connects, then accepts."""
    ends: dict[Key, Any] = {}
    for edge in edges:
        if edge.receiver == rank:
            path = folder / "-".join(map(str, edge.key))
            ends[edge.key] = SharedReceiveEnd.listen(path, edge.layout, edge.capacity, secret)
            stack.callback(ends[edge.key].close)
    listening = list(ends.values())
    for edge in edges:
        if edge.sender == rank:
            path = folder / "-".join(map(str, edge.key))
            ends[edge.key] = SharedSendEnd.connect(path, secret, _CONNECT_TIMEOUT_S)
            stack.callback(ends[edge.key].close)
    for end in listening:
        end.accept(_CONNECT_TIMEOUT_S)
    return ends
