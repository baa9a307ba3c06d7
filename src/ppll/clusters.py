"""What hosts and replicas change in the time that a pipeline takes (no torch).

The stages of a replica fill hosts one after the other. Features between hosts take a slower link,
and after every batch the replicas of a stage add up along a line; see ``replicas.py``. The line is
played piece by piece, with the order in which every replica sends. A host's network carries what
all its stages send and receive, so no batch takes less than that.

Stages may have unlike numbers of replicas, of which one divides the next. Every one of a stage does
the same in the same time, so one of each stands for all: it sends its shard in parts to those that
come after it, or it waits for the parts of those before and joins them.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ppll.errors import RecipeError
from ppll.links import Link, Pipeline, StageTimes
from ppll.simulate import Simulation, simulate

__all__ = ["COPIED_BYTES_S", "PIECE_BYTES", "Cluster", "ClusterTimes", "add_up_s"]
__all__ += ["crossing_bytes", "line_bytes", "line_s", "num_ahead", "simulate_cluster"]

PIECE_BYTES: Final = 1 << 20
"""Bytes of gradients that travel between replicas at once."""
COPIED_BYTES_S: Final = 5e9
"""What a processor core copies a second, roughly, where parts are joined."""
_ROWS: Final = 2
"""Gradients, and a number that says whether the batch is left out."""


@dataclass(frozen=True)
class Cluster:
    """Where the stages of all replicas are.

    Attributes:
        stages_per_host: How many of a replica's stages a host runs.
        inside: Between neighbours on one host.
        between: Between neighbours on two hosts; what a host's network carries, each way.
        num_replicas: Of every stage, or one number for all; a stage's are on hosts of their own.
    """

    stages_per_host: int
    inside: Link
    between: Link
    num_replicas: int | Sequence[int] = 1

    def __post_init__(self) -> None:
        numbers = self.replicas(1) if isinstance(self.num_replicas, int) else self.num_replicas
        if min(self.stages_per_host, *numbers) < 1:
            raise RecipeError(
                f"a cluster of {self.num_replicas} replica(s) with {self.stages_per_host} stage(s) "
                f"a host: give 1 or more of each."
            )
        for one, other in itertools.pairwise(numbers):
            if max(one, other) % min(one, other):
                raise RecipeError(
                    f"stages with {one} and {other} replicas follow each other: choose numbers of "
                    f"which one divides the other."
                )

    def replicas(self, num_stages: int) -> tuple[int, ...]:
        """Of every stage.

        Raises:
            RecipeError: There are other numbers of stages.
        """
        if isinstance(self.num_replicas, int):
            return (self.num_replicas,) * num_stages
        if len(self.num_replicas) != num_stages:
            raise RecipeError(f"{num_stages} stages with the replicas of {len(self.num_replicas)}.")
        return tuple(self.num_replicas)

    def links(self, num_stages: int) -> tuple[Link, ...]:
        """What joins every two stages: the slower, where some of their replicas share a host."""
        replicas = self.replicas(num_stages)
        return tuple(
            self.inside
            if all(self._is_here(i, *pair) for pair in _pairs(one, other))
            else self.between
            for i, (one, other) in enumerate(itertools.pairwise(replicas))
        )

    def network_s(self, stages: Sequence[StageTimes], gradient_bytes: Sequence[float]) -> float:
        """Seconds for which a batch occupies the busiest host's network, the busier way."""
        replicas = self.replicas(len(stages))
        sent: dict[tuple[int, int], float] = defaultdict(float)
        received: dict[tuple[int, int], float] = defaultdict(float)
        for i, (one, other) in enumerate(itertools.pairwise(replicas)):
            part = stages[i].features_bytes * one / max(one, other)
            for sender, receiver in _pairs(one, other):
                if not self._is_here(i, sender, receiver):
                    sent[sender, i // self.stages_per_host] += part
                    received[receiver, (i + 1) // self.stages_per_host] += part
        for i, (num, num_bytes) in enumerate(zip(replicas, gradient_bytes, strict=True)):
            for replica in range(num):
                # To those before and after it, and from them.
                num_neighbours = (replica > 0) + (replica < num - 1)
                sent[replica, i // self.stages_per_host] += num_neighbours * num_bytes
                received[replica, i // self.stages_per_host] += num_neighbours * num_bytes
        return self.between.transfer_s(max([*sent.values(), *received.values()]))

    def _is_here(self, stage: int, sender: int, receiver: int) -> bool:
        """Whether replicas of a stage and the next are on one host."""
        return sender == receiver and (stage + 1) % self.stages_per_host != 0


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


def add_up_s(num_bytes: float, num_replicas: int, link: Link) -> float:
    """Seconds in which replicas add up a block's gradients, and a number beside them."""
    return line_s(num_bytes, num_replicas, link) + (_ROWS - 1) * line_s(8, num_replicas, link)


def line_bytes(num_bytes: int, num_replicas: int) -> int:
    """What a process holds to add up so many bytes: all of them in a row, and its slots."""
    if num_replicas == 1:
        return 0
    num_inboxes = min(2, num_replicas - 1)
    slots = num_inboxes * (num_ahead(num_replicas - 1) + 1)
    return num_bytes + slots * min(num_bytes, PIECE_BYTES)


def crossing_bytes(sent: float, num: int, num_after: int, link: Link) -> float:
    """Bytes of a message that pass one after the other from a stage to the next.

    A process copies what it sends, part by part; a network carries what a host sends or receives,
    whichever is more.

    Args:
        sent: By one of the stage's replicas.
        num: How many these are.
        num_after: Replicas of the next stage.
        link: Between them.
    """
    return sent * max(1.0, num / num_after) if link.buffers else sent


def _pairs(num: int, num_after: int) -> list[tuple[int, int]]:
    """Which replicas of two stages that follow each other have samples in common."""
    most = max(num, num_after)
    return [(i * num // most, i * num_after // most) for i in range(most)]


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
        stages: One of every stage's replicas, for its shard of a batch.
        gradient_bytes: Of every stage; what its replicas add up after every batch.
        num_batches: Of all replicas of a stage together.
        options: Of the ``Pipeline``: ``capacity``, ``jitter`` and so on.

    Raises:
        RecipeError: A number cannot be.
    """
    if len(gradient_bytes) != len(stages):
        raise RecipeError(f"{len(stages)} stages with the gradients of {len(gradient_bytes)}.")
    replicas, links = cluster.replicas(len(stages)), cluster.links(len(stages))
    ask = functools.cache(lambda num_bytes, num: add_up_s(num_bytes, num, cluster.between))
    average_s = tuple(map(ask, gradient_bytes, replicas))
    shared = tuple(_shared(cluster, stages, average_s))
    pipeline = Pipeline(shared, links, replicas=replicas, **options)
    found = simulate(pipeline, num_batches)
    network_s = cluster.network_s(stages, gradient_bytes)
    return ClusterTimes(max(found.seconds_per_batch, network_s), found, average_s, network_s)


def _shared(
    cluster: Cluster, stages: Sequence[StageTimes], average_s: Sequence[float]
) -> Iterator[StageTimes]:
    """Stages with what they join, add up and send in parts."""
    num = len(stages)
    replicas = cluster.replicas(num)
    for i, (stage, link) in enumerate(zip(stages, (*cluster.links(num), Link()), strict=True)):
        joined_s, sent = 0.0, stage.features_bytes
        if i > 0 and replicas[i - 1] > replicas[i]:
            joined = stages[i - 1].features_bytes * replicas[i - 1] / replicas[i]
            joined_s = joined / COPIED_BYTES_S
        if i + 1 < num:
            sent = crossing_bytes(sent, replicas[i], replicas[i + 1], link)
        yield StageTimes(stage.before_send_s + joined_s, stage.after_send_s + average_s[i], sent)
