"""The channels of a pipeline of doubles: which there are, and how processes of one host join them.

``ppll.connections`` does the same for a run, from its recipe and network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from ppll.channels.base import SlotLayout
from ppll.channels.shared import SharedReceiveEnd, SharedSendEnd
from ppll.edges import Edge, Key
from ppll.mesh import Mesh

__all__ = ["edges_between", "join_shared"]

_CONNECT_TIMEOUT_S: Final = 60.0


def edges_between(mesh: Mesh, stage: int, layout: SlotLayout, capacity: int) -> Iterator[Edge]:
    """From the replicas of the stage before to those of a stage."""
    for before, rank in mesh.crossings(stage - 1, stage):
        yield Edge("features", before, rank, layout, capacity)


def join_shared(
    edges: Sequence[Edge], rank: int, folder: Path, secret: bytes, stack: ExitStack
) -> dict[Key, Any]:
    """A rank's ends in shared memory: it listens, then connects, then accepts."""
    ends: dict[Key, Any] = {}
    for edge in edges:
        if edge.receiver == rank:
            path = folder / edge.label
            ends[edge.key] = SharedReceiveEnd.listen(path, edge.layout, edge.capacity, secret)
            stack.callback(ends[edge.key].close)
    listening = list(ends.values())
    for edge in edges:
        if edge.sender == rank:
            path = folder / edge.label
            ends[edge.key] = SharedSendEnd.connect(path, secret, _CONNECT_TIMEOUT_S)
            stack.callback(ends[edge.key].close)
    for end in listening:
        end.accept(_CONNECT_TIMEOUT_S)
    return ends
