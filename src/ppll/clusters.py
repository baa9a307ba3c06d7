"""What hosts and replicas change in the time that a pipeline takes (no torch).

The stages of a replica fill hosts one after the other. Features between hosts take a slower link,
and after every batch the replicas of a stage add up along a line; see ``replicas.py``. The line is
played piece by piece, with the order in which every replica sends. A host's network carries what
all its stages send, so no batch takes less than that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ppll.errors import RecipeError
from ppll.links import Link, Pipeline, StageTimes
from ppll.simulate import Simulation, simulate

__all__ = ["PIECE_BYTES", "Cluster", "ClusterTimes", "line_s", "num_ahead", "simulate_cluster"]

PIECE_BYTES: Final = 1 << 20
"""Bytes of gradients that travel between replicas at once."""
_ROWS: Final = 2
"""Gradients, and a number that says whether the batch is left out."""


@dataclass(frozen=True)
class Cluster:
    """Where the stages of all replicas are.

    Attributes:
        stages_per_host: How many of a replica's stages a host runs.
        inside: Between neighbours on one host.
        between: Between neighbours on two hosts; what a host's network carries, each way.
        num_replicas: Copies of the pipeline, on hosts of their own.
    """

    stages_per_host: int
    inside: Link
    between: Link
    num_replicas: int = 1

    def __post_init__(self) -> None:
        if min(self.stages_per_host, self.num_replicas) < 1:
            raise RecipeError(
                f"a cluster of {self.num_replicas} replica(s) with {self.stages_per_host} stage(s) "
                f"a host: give 1 or more of each."
            )

    def links(self, num_stages: int) -> tuple[Link, ...]:
        """What joins every two stages of a replica."""
        ends = range(1, num_stages)
        return tuple(self.between if i % self.stages_per_host == 0 else self.inside for i in ends)

    def network_s(self, stages: Sequence[StageTimes], gradient_bytes: Sequence[float]) -> float:
        """Seconds for which a batch occupies the busiest host's network, each way."""
        times = min(2, self.num_replicas - 1)
        found = [0.0]
        for first in range(0, len(stages), self.stages_per_host):
            end = min(first + self.stages_per_host, len(stages))
            features = stages[end - 1].features_bytes if end < len(stages) else 0
            found.append(features + times * sum(gradient_bytes[first:end]))
        return self.between.transfer_s(max(found))


@dataclass(frozen=True)
class ClusterTimes:
    """What a cluster takes.

    Attributes:
        seconds_per_batch: In steady state.
        pipeline: The stages of a replica, with what they take for adding up.
        average_s: Of every stage, seconds for adding up with its replicas.
        network_s: For which a batch occupies the busiest host's network.
    """

    seconds_per_batch: float
    pipeline: Simulation
    average_s: tuple[float, ...]
    network_s: float


def num_ahead(num_links: int) -> int:
    """Pieces that a replica passes up before the first is back, with so many links after it."""
    return 2 * num_links


def line_s(num_bytes: float, num_replicas: int, link: Link) -> float:
    """Seconds in which replicas, a host each, add up so many bytes, and all have the total."""
    if num_replicas == 1:
        return 0.0
    num_pieces = max(1, math.ceil(num_bytes / PIECE_BYTES))
    piece_s = link.transfer_s(num_bytes / num_pieces)
    played = min(num_pieces, 8 * num_replicas)
    line = _PlayedLine(num_replicas, piece_s, link.latency_s)
    seconds = line.play(played)
    if played < num_pieces:  # All further ones come as the second half of these did.
        half = _PlayedLine(num_replicas, piece_s, link.latency_s).play(played // 2)
        seconds += (num_pieces - played) * (seconds - half) / (played - played // 2)
    return seconds


class _PlayedLine:
    """The pieces of a line: up from replica to replica, and the totals back.

    Every replica receives and sends in a fixed order, one piece after the other through its
    network, each way. What it sends leaves by itself.
    """

    def __init__(self, num_replicas: int, piece_s: float, latency_s: float) -> None:
        self._num = num_replicas
        self._piece_s = piece_s
        self._latency_s = latency_s
        self._now = [0.0] * num_replicas
        self._out_free = [0.0] * num_replicas
        self._in_free = [0.0] * num_replicas
        self._arrived: dict[tuple[bool, int, int], float] = {}

    def play(self, num_pieces: int) -> float:
        """Seconds until every replica has so many totals."""
        orders = [self._order(replica, num_pieces) for replica in range(self._num)]
        places = [0] * self._num
        for _ in range(sum(map(len, orders))):
            # The networks serve what comes first.
            begins = [self._begin_s(r, orders[r], places[r]) for r in range(self._num)]
            replica = begins.index(min(begins))
            self._step(replica, *orders[replica][places[replica]])
            places[replica] += 1
        return max(self._now)

    def _begin_s(self, replica: int, order: Sequence[tuple[bool, int]], place: int) -> float:
        """When a replica can pass on what follows; never where nothing does, or it has not come."""
        if place == len(order):
            return math.inf
        back, piece = order[place]
        begin_s = max(self._now[replica], self._out_free[replica])
        if 0 <= (replica + 1 if back else replica - 1) < self._num:
            begin_s = max(begin_s, self._arrived.get((back, replica, piece), math.inf))
        return begin_s

    def _order(self, replica: int, num_pieces: int) -> list[tuple[bool, int]]:
        """What a replica passes on: whether back, and which piece."""
        ahead = num_ahead(self._num - 1 - replica)
        order: list[tuple[bool, int]] = []
        for piece in range(num_pieces + ahead):
            order += [(False, piece)] if piece < num_pieces else []
            order += [(True, piece - ahead)] if piece >= ahead else []
        return order

    def _step(self, replica: int, back: bool, piece: int) -> None:
        """Pass on a piece that has come."""
        came = self._arrived.pop((back, replica, piece), 0.0)
        self._now[replica] = max(self._now[replica], came)
        goes = replica - 1 if back else replica + 1
        if 0 <= goes < self._num:
            self._out_free[replica] = max(self._now[replica], self._out_free[replica])
            self._out_free[replica] += self._piece_s
            arrived = max(self._out_free[replica], self._in_free[goes] + self._piece_s)
            self._in_free[goes] = arrived
            self._arrived[back, goes, piece] = arrived + self._latency_s


def simulate_cluster(
    cluster: Cluster,
    stages: Sequence[StageTimes],
    gradient_bytes: Sequence[float],
    num_batches: int,
    **options: Any,
) -> ClusterTimes:
    """What ``num_batches`` batches take on a cluster.

    Args:
        cluster: Where the stages are.
        stages: Of one replica, for its shard of a batch.
        gradient_bytes: Of every stage; what its replicas add up after every batch.
        num_batches: Of all replicas together.
        options: Of the ``Pipeline``: ``capacity``, ``jitter`` and so on.

    Raises:
        RecipeError: A number cannot be.
    """
    if len(gradient_bytes) != len(stages):
        raise RecipeError(f"{len(stages)} stages with the gradients of {len(gradient_bytes)}.")
    start_s = (_ROWS - 1) * line_s(8, cluster.num_replicas, cluster.between)
    line = {b: line_s(b, cluster.num_replicas, cluster.between) for b in set(gradient_bytes)}
    average_s = tuple(start_s + line[b] for b in gradient_bytes)
    slower = [
        replace(stage, after_send_s=stage.after_send_s + seconds)
        for stage, seconds in zip(stages, average_s, strict=True)
    ]
    links = cluster.links(len(stages))
    pipeline = Pipeline(tuple(slower), links, replicas=cluster.num_replicas, **options)
    found = simulate(pipeline, num_batches)
    network_s = cluster.network_s(stages, gradient_bytes)
    return ClusterTimes(max(found.seconds_per_batch, network_s), found, average_s, network_s)
