"""What hosts and replicas change in the time that a pipeline takes (no torch).

The stages of a replica fill hosts one after the other. Features between hosts take a slower link,
and the replicas of a stage add up along a line, beside the backward pass and after it. A host's
network carries what all its stages send and receive, so no batch takes less than that.

Stages may have unlike numbers of replicas, of which one divides the next. Every one of a stage does
the same in the same time, so one of each stands for all: it sends its shard in parts to those that
come after it, or it waits for the parts of those before and joins them.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ppll.errors import RecipeError
from ppll.mesh import crossings
from ppll.simulation.line_times import exposed_s, made_evenly
from ppll.simulation.links import Link, Pipeline, StageTimes
from ppll.simulation.simulate import Simulation, simulate

__all__ = ["COPIED_BYTES_S", "Cluster", "ClusterTimes", "crossed", "simulate_cluster"]

COPIED_BYTES_S: Final = 5e9
"""What a processor core copies a second, roughly, where parts are joined."""


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
            if all(self._is_here(i, *pair) for pair in crossings(one, other))
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
            for sender, receiver in crossings(one, other):
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
        average_s: Of every stage, seconds for which it goes on adding up when it has learned.
        network_s: For which a batch occupies the busiest host's network.
    """

    seconds_per_batch: float
    pipeline: Simulation
    average_s: tuple[float, ...]
    network_s: float


def crossed(
    stages: Sequence[StageTimes], replicas: Sequence[int], links: Sequence[Link]
) -> tuple[StageTimes, ...]:
    """Stages with what passing between unlike numbers of replicas adds to their times.

    Who has fewer replicas than the stage before joins its parts, a copy of all bytes. A process
    copies what it sends, part by part; a network carries what a host sends or receives, whichever
    is more: ``features_bytes`` become those that pass one after the other.

    Args:
        stages: One of every stage's replicas, for its shard of a batch.
        replicas: Of every stage.
        links: One between every two stages.
    """
    found = list(stages)
    pairs = zip(itertools.pairwise(stages), itertools.pairwise(replicas), links, strict=True)
    for i, ((stage, _), (num, num_after), link) in enumerate(pairs):
        parts = max(1.0, num / num_after)
        if link.buffers:
            found[i] = replace(found[i], features_bytes=parts * stage.features_bytes)
        if num > num_after:
            joined_s = parts * stage.features_bytes / COPIED_BYTES_S
            after = found[i + 1]
            found[i + 1] = replace(after, before_send_s=after.before_send_s + joined_s)
    return tuple(found)


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
        gradient_bytes: Of every stage; what its replicas add up, made evenly while they learn.
        num_batches: Of all replicas of a stage together.
        options: Of the ``Pipeline``: ``capacity``, ``jitter`` and so on.

    Raises:
        RecipeError: A number cannot be.
    """
    if len(gradient_bytes) != len(stages):
        raise RecipeError(f"{len(stages)} stages with the gradients of {len(gradient_bytes)}.")
    replicas, links = cluster.replicas(len(stages)), cluster.links(len(stages))
    average_s = tuple(
        exposed_s(made_evenly(stage.after_send_s, num_bytes), num, cluster.between)
        for stage, num_bytes, num in zip(stages, gradient_bytes, replicas, strict=True)
    )
    adding_up = [
        replace(stage, after_send_s=stage.after_send_s + seconds)
        for stage, seconds in zip(stages, average_s, strict=True)
    ]
    shared = crossed(adding_up, replicas, links)
    pipeline = Pipeline(shared, links, replicas=replicas, **options)
    found = simulate(pipeline, num_batches)
    network_s = cluster.network_s(stages, gradient_bytes)
    return ClusterTimes(max(found.seconds_per_batch, network_s), found, average_s, network_s)
