"""On which CUDA streams the blocks of a stage compute: on one, or each on its own.

With a stream a block, a block goes on to the next message while those behind it still learn from
the last one, so kernels of several blocks fill one GPU together. The host only lines work up::

    block 0   F(t) L(t)          F(t+1) L(t+1)  ...
    block 1          F(t)  L(t)         F(t+1)  ...

A forward waits for the features of the block before, and for the block behind to have taken in
those that it would overwrite. Only replayed steps overlap: they lie in memory of their own. All
else happens on the home stream, which waits for the others first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from ppll.blocks.block import Block
from ppll.blocks.graphs import GraphRecorder, RecordedBlock, Recorder
from ppll.config import Recipe
from ppll.message import Message

__all__ = ["ConcurrentStreams", "Streams", "make_streams"]

_made: defaultdict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)


class Streams:
    """Blocks one after the other, on one stream.

    Args:
        recorder: Takes down the steps of all blocks; none where nothing is recorded.
        stream: The home stream; that of the caller without.
    """

    def __init__(
        self, recorder: Recorder | None = None, stream: torch.cuda.Stream | None = None
    ) -> None:
        self._recorder = recorder
        self._stream = stream

    def recorder(self, position: int) -> Recorder | None:  # noqa: ARG002
        """What takes down the steps of the stage's block number ``position``."""
        return self._recorder

    @contextmanager
    def home(self) -> Iterator[None]:
        """Work on the home stream inside: all that was lined up before is done then, and all of
        this at last."""
        if self._stream is None:
            yield
            return
        torch.cuda.synchronize(self._stream.device)
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.synchronize(self._stream.device)

    def may_overlap(self, first: Block, message: Message) -> bool:  # noqa: ARG002
        """Whether blocks may work on a training message while others do on the next.

        Args:
            first: The stage's first block; those behind it see messages of the same forms.
            message: The one that comes.
        """
        return False

    def turn(
        self,
        position: int,  # noqa: ARG002
        *,
        overlaps: bool,  # noqa: ARG002
    ) -> AbstractContextManager[object]:
        """A block's work on a message.

        Args:
            position: Which block of the stage.
            overlaps: Whether it may overlap with other blocks' work on other messages.
        """
        return nullcontext()

    def forwarded(self, position: int) -> None:
        """A block's forward has been lined up."""

    def join(self) -> None:
        """Let the home stream wait for all blocks."""


class ConcurrentStreams(Streams):
    """Blocks at the same time, each on a stream of its own; the first one's is the home stream."""

    def __init__(self, device: torch.device, num_blocks: int) -> None:
        self._streams = _streams(device, num_blocks)
        super().__init__(stream=self._streams[0])
        self._recorders = [
            GraphRecorder(stream, torch.cuda.graph_pool_handle()) for stream in self._streams
        ]
        self._forwarded = [_new_event() for _ in self._streams]

    def recorder(self, position: int) -> Recorder:
        """What takes down the steps of the stage's block number ``position``."""
        return self._recorders[position]

    def may_overlap(self, first: Block, message: Message) -> bool:
        """Whether the blocks only replay what they do with a message."""
        return isinstance(first, RecordedBlock) and first.has_recorded(message)

    def turn(self, position: int, *, overlaps: bool) -> AbstractContextManager[object]:
        """A block's work on a message, on its own stream where it overlaps."""
        return self._own(position) if overlaps else nullcontext()

    @contextmanager
    def _own(self, position: int) -> Iterator[None]:
        stream = self._streams[position]
        for event in self._neighbours(position):
            stream.wait_event(event)
        with torch.cuda.stream(stream):
            yield

    def _neighbours(self, position: int) -> Sequence[torch.cuda.Event]:
        before = self._forwarded[position - 1 : position] if position else []
        return [*before, *self._forwarded[position + 1 : position + 2]]

    def forwarded(self, position: int) -> None:
        """A block's forward has been lined up: its features, and what it took in, are safe."""
        self._forwarded[position].record()

    def join(self) -> None:
        """Let the home stream wait for all blocks."""
        for stream in self._streams[1:]:
            self._streams[0].wait_stream(stream)


def make_streams(recipe: Recipe, device: torch.device, num_blocks: int) -> Streams:
    """The streams of one stage as the recipe asks for them."""
    if not recipe.train.cuda_graphs:
        return Streams()
    if recipe.runtime.concurrent_blocks:
        return ConcurrentStreams(device, num_blocks)
    (stream,) = _streams(device, 1)
    return Streams(GraphRecorder(stream, torch.cuda.graph_pool_handle()), stream)


def _streams(device: torch.device, number: int) -> list[torch.cuda.Stream]:
    """The same for every run of a process, which come one after the other: cuBLAS keeps memory for
    each stream that it has seen."""
    made = _made[device]
    made += [torch.cuda.Stream(device) for _ in range(number - len(made))]  # type: ignore[no-untyped-call]
    return made[:number]


def _new_event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
