"""A block whose training step is recorded once and replayed: no Python and one launch a step.

A step of local learning is closed: what comes in is a message, what goes out are features, and
between the two is everything that an update needs. So a block's forward can be recorded as one
CUDA graph and its learning step, optimizer included, as another. What differs from step to step
stays outside: seeds, the learning rate (read from the device), averages.

The first batches are learned from without recording, and so are batches of another size, such as
the last of an epoch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol, TypeAlias

import torch
from torch import Tensor

from ppll.blocks.block import Block
from ppll.blocks.passage import Passage
from ppll.errors import ModelError
from ppll.message import Kind, Message, dense_copy

__all__ = ["GraphRecorder", "RecordedBlock", "Recorder"]

_WARM_UP: Final = 3
"""Batches of a form before it is recorded: kernels are loaded, optimizers have their state."""

_Form: TypeAlias = tuple[tuple[Any, ...], ...]
_Record: TypeAlias = Callable[[Callable[[], None]], Callable[[], None]]


class Recorder(Protocol):
    """Takes down what some work does on a device."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Take down the work, without doing it; what is returned does it, any number of times."""


class GraphRecorder:
    """Records CUDA graphs.

    Args:
        stream: On which is recorded; not the default one.
        pool: Memory of the graphs. Those that share it are replayed in the order in which they
            were recorded, never at the same time.
    """

    def __init__(self, stream: torch.cuda.Stream, pool: Any) -> None:
        self._stream = stream
        self._pool = pool

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Take down the work, which waits for the device; what is returned replays it."""
        graph = torch.cuda.CUDAGraph()
        # Other threads of a rank copy to the device meanwhile.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


class RecordedBlock(Block):
    """A block that replays its training steps.

    Args:
        args: As of ``Block``.
        recorder: Takes steps down.
        kwargs: As of ``Block``.
    """

    def __init__(self, *args: Any, recorder: Recorder, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._recorder = recorder
        self._num_seen: Counter[_Form] = Counter()
        self._recording: _Recording | None = None
        self._replays = False
        self._generator = (
            torch.Generator(self.device).graphsafe_get_state()
            if self.device.type == "cuda"
            else None
        )

    def has_recorded(self, message: Message) -> bool:
        """Whether the block only replays what it does with messages such as this one."""
        recording = self._recording
        return recording is not None and recording.is_whole and recording.form == _form(message)

    def _forward(self, message: Message) -> tuple[Passage, dict[str, Tensor]]:
        form = _form(message)
        self._replays = message.kind is Kind.TRAIN and self._is_recorded(form)
        if not self._replays:
            return super()._forward(message)
        if self._recording is None:
            self._recording = _Recording(form, message, super()._forward, super()._learn)
        passage, fields = self._recording.forward(message, self._record)
        return replace(passage, message=message), fields

    def _learn(self, passage: Passage, late: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self._replays:
            return super()._learn(passage, late)
        assert self._recording is not None
        return self._recording.learn(late, self._record)

    def _is_recorded(self, form: _Form) -> bool:
        """Whether messages of a form are recorded: those of the first that is seen often enough."""
        if self._recording is not None:
            return self._recording.form == form
        self._num_seen[form] += 1
        return self._num_seen[form] > _WARM_UP

    def _record(self, work: Callable[[], None]) -> Callable[[], None]:
        try:
            return self._recorder.record(work)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # To end what could not be recorded fails as well, and says nothing of the cause.
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            reason = str(error.__context__ or error).partition("\n")[0]
            raise ModelError(
                f"block {self.index} cannot be recorded as a CUDA graph ({reason}): nothing in "
                f"layers, auxiliary network and loss may look at values on the device or copy "
                f"from the processor. Mend that, or set train.cuda_graphs = false."
            ) from error

    def _seed(self, phase: int, message: Message) -> None:
        if self._generator is not None:
            # Graphs read seeds from the device, so blocks that replay at the same time need a
            # generator each.
            home = torch.cuda.default_generators[self.device.index or 0]
            home.graphsafe_set_state(self._generator)
        super()._seed(phase, message)


class _Recording:
    """One form of message: its memory, and what a block does with it.

    What it makes lies in the same memory after every step.
    """

    def __init__(
        self,
        form: _Form,
        message: Message,
        forward: Callable[[Message], tuple[Passage, dict[str, Tensor]]],
        learn: Callable[[Passage, Mapping[str, Tensor]], dict[str, Tensor]],
    ) -> None:
        self.form = form
        self._message = replace(message, tensors=_copies(message.tensors))
        self._late: dict[str, Tensor] = {}
        self._forward = forward
        self._learn = learn
        self._replay_forward: Callable[[], None] | None = None
        self._replay_learn: Callable[[], None] | None = None
        self._passage: Passage | None = None
        self._fields: dict[str, Tensor] = {}
        self._late_part: dict[str, Tensor] = {}

    @property
    def is_whole(self) -> bool:
        """Whether both halves are recorded."""
        return self._replay_learn is not None

    def forward(self, message: Message, record: _Record) -> tuple[Passage, dict[str, Tensor]]:
        """Replay the forward on a message; record it first, the first time."""
        _take_in(self._message.tensors, message.tensors)
        if self._replay_forward is None:
            self._replay_forward = record(self._run_forward)
        self._replay_forward()
        assert self._passage is not None
        return self._passage, {**self._message.tensors, **self._fields}

    def learn(self, late: Mapping[str, Tensor], record: _Record) -> dict[str, Tensor]:
        """Replay the learning step; record it first, the first time."""
        if self._replay_learn is None:
            self._late = _copies(late)
            self._replay_learn = record(self._run_learn)
        else:
            _take_in(self._late, late)
        self._replay_learn()
        # Replays need no tensors with a history, which holds on to nodes of the recording's stream.
        inputs = self._message.features
        self._passage = Passage(self._message, inputs, inputs)
        return self._late_part

    def _run_forward(self) -> None:
        self._passage, self._fields = self._forward(self._message)

    def _run_learn(self) -> None:
        assert self._passage is not None
        self._late_part = self._learn(self._passage, self._late)


def _form(message: Message) -> _Form:
    """What messages must have in common to be replayed alike."""
    tensors = ((n, t.shape, t.stride(), t.dtype) for n, t in message.tensors.items())
    return ((message.part, message.num_parts, message.share), *tensors)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: dense_copy(tensor) for name, tensor in tensors.items()}


def _take_in(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    for name, target in targets.items():
        target.copy_(sources[name], non_blocking=True)
