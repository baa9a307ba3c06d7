"""A rank's channels to its neighbours: features forward, and what a method sends beside them.

Every end that receives listens before any connects, and accepts at last, so that neighbours may
come up in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Final

import torch

from ppll.channels.base import Inbox, SlotLayout
from ppll.channels.shared import SharedReceiveEnd, SharedSendEnd
from ppll.data import load_batches
from ppll.ends import PARAMETERS, Ends
from ppll.job import Job
from ppll.message import FEATURES, MIX, OTHER_TARGETS, TARGETS
from ppll.methods.base import PREVIOUS
from ppll.prefetch import Prefetcher
from ppll.split import Blueprint
from ppll.stream import evaluation_stream, training_stream

__all__ = ["connect"]

_CONNECT_TIMEOUT_S: Final = 60.0
_FLOAT_BYTES: Final = torch.float32.itemsize


def connect(
    job: Job,
    rank: int,
    blueprint: Blueprint,
    ends_early: Callable[[], bool],
    stack: ExitStack,
) -> Ends:
    """Join a rank to its neighbours; the first one to the data.

    Args:
        job: The run.
        rank: Which stage.
        blueprint: The network cut into blocks.
        ends_early: Asked by the first rank after every batch.
        stack: Closes everything.
    """
    joints = _Joints(job, stack)
    layouts = _Layouts(job, blueprint)
    first = blueprint.stage_blocks(job.num_stages)[rank].start
    last = blueprint.stage_blocks(job.num_stages)[rank].stop - 1
    method, has_next = blueprint.method, rank + 1 < job.num_stages
    capacity = job.recipe.runtime.capacity
    is_late = bool(method.late_fields) and not job.evaluates_only
    is_slow = method.slow_from is not None and not job.evaluates_only
    features_in = late_in = slow_in = None
    if rank > 0:
        features_in = joints.listen("features", rank, layouts.features(first), capacity)
        if is_late:
            late_in = joints.listen("late", rank, layouts.late(first), capacity)
    if has_next and is_slow:
        slow_in = joints.listen("slow", rank, layouts.slow(last), method.lag + 1)
    features_out = joints.connect("features", rank + 1) if has_next else None
    late_out = joints.connect("late", rank + 1) if has_next and is_late else None
    slow_out = joints.connect("slow", rank - 1) if rank > 0 and is_slow else None
    joints.accept()
    inbox = features_in or _loader(job, blueprint, ends_early, stack)
    return Ends(inbox, features_out, late_in, late_out, slow_in, slow_out)


class _Joints:
    """Channels by name; each is known by who receives."""

    def __init__(self, job: Job, stack: ExitStack) -> None:
        self._job = job
        self._stack = stack
        self._listening: list[SharedReceiveEnd] = []

    def listen(
        self, name: str, receiver: int, layout: SlotLayout, capacity: int
    ) -> SharedReceiveEnd:
        """The receiving end of a channel, which ``accept`` completes."""
        path = self._folder / f"{name}-{receiver}"
        end = SharedReceiveEnd.listen(path, layout, capacity, self._job.secret)
        self._stack.callback(end.close)
        self._listening.append(end)
        return end

    def connect(self, name: str, receiver: int) -> SharedSendEnd:
        """The sending end of a channel."""
        path = self._folder / f"{name}-{receiver}"
        end = SharedSendEnd.connect(path, self._job.secret, _CONNECT_TIMEOUT_S)
        self._stack.callback(end.close)
        return end

    def accept(self) -> None:
        """Wait for the senders of all ends that listen."""
        for end in self._listening:
            end.accept(_CONNECT_TIMEOUT_S)

    @property
    def _folder(self) -> Path:
        assert self._job.sockets is not None
        return self._job.sockets


class _Layouts:
    """How large the fields of messages are."""

    def __init__(self, job: Job, blueprint: Blueprint) -> None:
        self._blueprint = blueprint
        self._input_shape = job.facts.input_shape
        self._mixes = job.recipe.data.mixes
        self._num = max(job.recipe.message_size, job.recipe.eval_batch_size)

    def features(self, block_index: int) -> SlotLayout:
        """Of what enters a block."""
        method = self._blueprint.method
        shapes = {FEATURES: self._blueprint.input_shape(block_index)}
        # A field of the loader's is a copy of the input in floats or less.
        shapes |= {name: self._input_shape for name in method.fields}
        if method.carries_input and block_index:
            shapes[PREVIOUS] = self._blueprint.input_shape(block_index - 1)
        return SlotLayout({**self._sizes(shapes), **self._target_sizes()})

    def _target_sizes(self) -> dict[str, int]:
        """Of what says what is to be predicted."""
        types = {TARGETS: torch.int64}
        if self._mixes:
            types |= {OTHER_TARGETS: torch.int64, MIX: torch.float32}
        return {name: self._num * dtype.itemsize for name, dtype in types.items()}

    def late(self, block_index: int) -> SlotLayout:
        """Of what enters a block late."""
        site = self._blueprint.sites[block_index - 1]
        return SlotLayout(self._sizes(self._blueprint.method.late_shapes(site)))

    def slow(self, block_index: int) -> SlotLayout:
        """Of what a block reads of the next one."""
        layer = self._blueprint.outline(block_index + 1).layers[0]
        num = sum(p.numel() for p in layer.module.parameters())
        return SlotLayout({PARAMETERS: num * _FLOAT_BYTES})

    def _sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        return {n: self._num * prod(shape) * _FLOAT_BYTES for n, shape in shapes.items()}


def _loader(
    job: Job, blueprint: Blueprint, ends_early: Callable[[], bool], stack: ExitStack
) -> Inbox:
    batches = load_batches(
        job.recipe.data,
        seed=job.recipe.train.seed,
        eval_batch_size=job.recipe.eval_batch_size,
        user_data=job.folder.user_data if job.user_data else None,
        fields=blueprint.method.fields,
    )
    if job.evaluates_only:
        stream = evaluation_stream(batches, job.start_step)
    else:
        stream = training_stream(
            batches,
            job.recipe,
            blueprint.num_steps,
            start_step=job.start_step,
            ends_early=ends_early,
        )
    loader = Prefetcher(stream, capacity=job.recipe.runtime.capacity)
    stack.callback(loader.close)
    return loader
