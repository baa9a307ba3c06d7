"""A rank's channels to its neighbours: features forward, and what a method sends beside them.

Every end that receives listens before any connects, and accepts at last, so that neighbours may
come up in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

from ppll.blocks.blueprint import Blueprint
from ppll.channels.base import Inbox, ReceiveEnd, SendEnd
from ppll.channels.process_group import GroupReceiveEnd, GroupSendEnd
from ppll.channels.shards import Gather, Scatter
from ppll.channels.shared import SharedReceiveEnd, SharedSendEnd
from ppll.data import load_batches
from ppll.data.home import home_of
from ppll.devices import device_of
from ppll.edges import Edge, Key, edges_of_line
from ppll.ending import Ending
from ppll.ends import Ends
from ppll.job import Job
from ppll.mesh import Mesh
from ppll.on_demand import OnDemand
from ppll.prefetch import Prefetcher
from ppll.replicas.exchange import largest_row_bytes
from ppll.replicas.line import Line, Neighbour
from ppll.slot_layouts import Layouts
from ppll.stream import evaluation_stream, training_stream
from ppll.world import World

__all__ = ["connect", "ends_of"]

_CONNECT_TIMEOUT_S: Final = 60.0
_PROCESSOR: Final = torch.device("cpu")

End = TypeVar("End", bound=SendEnd | ReceiveEnd)


def connect(
    job: Job,
    rank: int,
    blueprint: Blueprint,
    wish: Callable[[], int],
    stack: ExitStack,
    world: World | None = None,
) -> Ends:
    """Join a rank to its neighbours; those of the first stage to the data.

    Args:
        job: The run.
        rank: Which.
        blueprint: The network cut into blocks.
        wish: Asked by the first rank after every batch.
        stack: Closes everything.
        world: All processes, where they may be on several hosts.
    """
    mesh = job.mesh
    ending = Ending.of_rank(mesh, rank, wish, job.recipe.runtime.capacity)
    edges = [edge for edge in _edges(job, blueprint) if rank in (edge.sender, edge.receiver)]
    ends = _Joints(job, rank, world, stack).join(edges)
    return ends_of(ends, mesh, rank, ending, lambda: _loader(job, rank, blueprint, ending, stack))


def ends_of(
    ends: Mapping[Key, Any],
    mesh: Mesh,
    rank: int,
    ending: Ending,
    loader: Callable[[], Inbox],
) -> Ends:
    """A rank's channels, those to replicas that share a message taken together.

    Args:
        ends: Of each channel, by name, sender and receiver, the rank's end.
        mesh: All processes.
        rank: Which.
        ending: Of the run.
        loader: Makes the inbox of the first stage.
    """
    features, late, slow = (_both_ways(ends, name, rank) for name in ("features", "late", "slow"))
    inbox = _gathered(features[0]) or loader()
    return Ends(
        inbox,
        _scattered(features[1]),
        _gathered(late[0]),
        _scattered(late[1]),
        _gathered(slow[0]),
        tuple(slow[1]),
        _line(ends, mesh, rank, ending) if mesh.num_replicas(rank) > 1 else None,
        isinstance(inbox, OnDemand),
    )


def _both_ways(ends: Mapping[Key, Any], name: str, rank: int) -> tuple[list[Any], list[Any]]:
    """A rank's ends of a name, those that receive and those that send, in order of replicas."""
    named = [(key, end) for key, end in ends.items() if key[0] == name]
    inward = [end for (_, _, receiver), end in named if receiver == rank]
    return inward, [end for (_, sender, _), end in named if sender == rank]


def _gathered(ends: Sequence[ReceiveEnd]) -> ReceiveEnd | None:
    return Gather(ends) if len(ends) > 1 else next(iter(ends), None)


def _scattered(ends: Sequence[SendEnd]) -> SendEnd | None:
    return Scatter(ends) if len(ends) > 1 else next(iter(ends), None)


def _line(ends: Mapping[Key, Any], mesh: Mesh, rank: int, ending: Ending) -> Line:
    """A rank's place among its replicas."""
    before = after = None
    stage, replica = mesh.stage(rank), mesh.replica(rank)
    num_after = mesh.num_replicas(rank) - 1 - replica
    if replica:
        other = mesh.rank(replica - 1, stage)
        before = Neighbour(ends["up", other, rank], ends["back", rank, other])
    if num_after:
        other = mesh.rank(replica + 1, stage)
        after = Neighbour(ends["back", other, rank], ends["up", rank, other])
    return Line(before, after, num_after, ending)


def _edges(job: Job, blueprint: Blueprint) -> Iterator[Edge]:
    """Every channel of a run, those between the same two ranks next to each other."""
    for stage, blocks in enumerate(blueprint.stage_blocks(job.num_stages)):
        if stage:
            yield from _edges_to(job, blueprint, stage, blocks.start)
        if len(ranks := job.mesh.ranks(stage)) > 1:
            largest = max(largest_row_bytes(blueprint.outline(index)) for index in blocks)
            yield from edges_of_line(ranks, largest)


def _edges_to(job: Job, blueprint: Blueprint, stage: int, block: int) -> Iterator[Edge]:
    """From all replicas of the stage before to those of a stage, whose first block is given."""
    layouts, method = Layouts(job, blueprint), blueprint.method
    capacity, last = job.recipe.runtime.capacity, job.mesh.num_stages - 1
    reached = set()
    for before, rank in job.mesh.crossings(stage - 1, stage):
        yield Edge("features", before, rank, layouts.features(block), capacity)
        if job.evaluates_only:
            continue
        if method.late_fields:
            yield Edge("late", before, rank, layouts.late(block), capacity)
        if method.slow_from is not None and before not in reached:
            reached.add(before)
            by = last if method.slow_from == "last" else stage
            sender = next(s for r, s in job.mesh.crossings(stage - 1, by) if r == before)
            yield Edge("slow", sender, before, layouts.slow(block - 1), method.lag + 1)


class _Joints:
    """Makes a rank's ends: in shared memory between processes of one host, else over a network.

    Where both ranks compute on GPUs, messages pass between those.
    """

    def __init__(self, job: Job, rank: int, world: World | None, stack: ExitStack) -> None:
        self._job = job
        self._rank = rank
        self._world = world
        self._stack = stack

    def join(self, edges: Sequence[Edge]) -> dict[Key, Any]:
        """An end of each channel, by its key, in the same order."""
        here = [edge for edge in edges if self._is_here(edge)]
        ends: dict[Key, Any] = {
            edge.key: self._listen(edge) for edge in here if edge.receiver == self._rank
        }
        listening = list(ends.values())
        ends |= {edge.key: self._connect(edge) for edge in here if edge.sender == self._rank}
        for end in listening:
            end.accept(_CONNECT_TIMEOUT_S)
        away = sorted((edge for edge in edges if edge not in here), key=_turn)
        ends |= {edge.key: self._reach(edge) for edge in away}
        return {edge.key: ends[edge.key] for edge in edges}

    def _is_here(self, edge: Edge) -> bool:
        """Whether both ends are on this host."""
        other = edge.sender if edge.receiver == self._rank else edge.receiver
        return self._world is None or self._world.is_here(other)

    def _device(self, edge: Edge) -> torch.device:
        """Where messages of an edge leave this rank, or arrive."""
        runtime = self._job.recipe.runtime
        on_gpus = all(device_of(runtime, r).type == "cuda" for r in (edge.sender, edge.receiver))
        # What goes beside the features is made, or kept, on the processor.
        if edge.name == "features" and on_gpus and runtime.transport == "auto":
            return device_of(runtime, self._rank)
        return _PROCESSOR

    def _path(self, edge: Edge) -> Path:
        assert self._job.sockets is not None
        return self._job.sockets / edge.label

    def _listen(self, edge: Edge) -> SharedReceiveEnd:
        return self._closed_at_last(
            SharedReceiveEnd.listen(
                self._path(edge),
                edge.layout,
                edge.capacity,
                self._job.secret,
                device=self._device(edge),
            )
        )

    def _connect(self, edge: Edge) -> SharedSendEnd:
        return self._closed_at_last(
            SharedSendEnd.connect(
                self._path(edge),
                self._job.secret,
                _CONNECT_TIMEOUT_S,
                device=self._device(edge),
            )
        )

    def _reach(self, edge: Edge) -> GroupReceiveEnd | GroupSendEnd:
        assert self._world is not None  # else all are here
        kind = GroupReceiveEnd if edge.receiver == self._rank else GroupSendEnd
        return self._closed_at_last(
            kind(
                self._world.store,
                edge.label,
                edge.layout,
                edge.capacity,
                address=self._world.address,
                timeout_s=_CONNECT_TIMEOUT_S,
                device=self._device(edge),
            )
        )

    def _closed_at_last(self, end: End) -> End:
        self._stack.enter_context(end)
        return end


def _turn(edge: Edge) -> tuple[int, int, int]:
    """When an edge is connected: all ranks have one order, so none wait for each other in a circle.

    Every other edge of a chain comes first, so that a long one takes no longer.
    """
    first, second = sorted((edge.sender, edge.receiver))
    return first % 2, first, second


def _loader(job: Job, rank: int, blueprint: Blueprint, ending: Ending, stack: ExitStack) -> Inbox:
    batches = load_batches(
        job.recipe.data,
        seed=job.recipe.train.seed,
        eval_batch_size=job.recipe.eval_batch_size,
        user_data=job.folder.user_data if job.user_data else None,
        facts=job.facts,
        fields=blueprint.method.fields,
        replica=job.mesh.replica(rank),
        num_replicas=job.mesh.num_replicas(rank),
    )
    runtime = job.recipe.runtime
    device = device_of(runtime, rank)
    batches.move_to(home_of(batches.data, runtime.data, device))
    if job.evaluates_only:
        stream = evaluation_stream(batches, job.start_step)
    else:
        stream = training_stream(
            batches,
            job.recipe,
            blueprint.num_steps,
            start_step=job.start_step,
            ending=ending,
        )
    is_made_there = runtime.data == "device" or batches.device.type == "cuda"
    loader = OnDemand(stream) if is_made_there else Prefetcher(stream, runtime.capacity, device)
    stack.callback(loader.close)
    return loader
