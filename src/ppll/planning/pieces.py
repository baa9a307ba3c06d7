"""A layer or an exit that is run and timed alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from ppll.blocks.graphs import Recorder
from ppll.models.structures import Structure, main_of, mapped, tensors_of

__all__ = [
    "Piece",
    "RecordedWatch",
    "Times",
    "Watch",
    "backward",
    "clock",
    "forward",
    "leaf",
    "update",
]

_T = TypeVar("_T")
_NUM_REPLAYS: Final = 5


class Watch:
    """Times work on a device that is idle before and after, launches included."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def time(self, key: Hashable, work: Callable[[], _T]) -> tuple[float, _T]:  # noqa: ARG002
        """Seconds of the work, and what it makes; ``key`` tells it from all other work."""
        start = clock(self._device)
        result = work()
        return clock(self._device) - start, result


class RecordedWatch(Watch):
    """Times what a device takes to replay some work, which is recorded when it first comes.

    Args:
        device: Where it is done.
        recorder: Takes it down.
    """

    def __init__(self, device: torch.device, recorder: Recorder) -> None:
        super().__init__(device)
        self._recorder = recorder
        self._recorded: dict[Hashable, tuple[Callable[[], None], Any]] = {}
        self._kept: list[Callable[[], Any]] = []

    def time(self, key: Hashable, work: Callable[[], _T]) -> tuple[float, _T]:
        """Seconds of one of several replays, and what they make, in the same memory every time."""
        if key not in self._recorded:
            results: list[_T] = []
            replay = self._recorder.record(lambda: results.append(work()))
            replay()
            self._recorded[key] = replay, results[0]
            self._kept.append(work)  # Its inputs are read by every replay.
        replay, result = self._recorded[key]
        start = clock(self._device)
        for _ in range(_NUM_REPLAYS):
            replay()
        return (clock(self._device) - start) / _NUM_REPLAYS, result


@dataclass
class Times:
    """Repeats of the times of one piece, in seconds."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    backward_first: list[float] = field(default_factory=list)
    update: list[float] = field(default_factory=list)


@dataclass
class Piece:
    """A layer or an exit with what is needed to run it alone.

    Attributes:
        run: What it computes: of one tensor, or of several that are put together, the same.
        module: What has its parameters.
        optimizer: Updates them, where there are some.
        makes: How its output is put together; none for one tensor.
        times: What was measured so far.
        activation_bytes: What its forward keeps for its backward.
        features_bytes: Of the main tensor of its output.
        features_shape: The shape of that.
        beside_bytes: Of the other tensors of its output.
    """

    run: Callable[[Any], Any]
    module: nn.Module
    optimizer: torch.optim.Optimizer | None
    makes: Structure | None = None
    times: Times = field(default_factory=Times)
    activation_bytes: int = 0
    features_bytes: int = 0
    features_shape: tuple[int, ...] = ()
    beside_bytes: int = 0

    @property
    def parameter_bytes(self) -> int:
        """Size of its parameters."""
        return sum(p.nbytes for p in self.module.parameters())

    def main(self, output: Any) -> Tensor:
        """The main tensor of its output."""
        return main_of(output, self.makes)


def clock(device: torch.device) -> float:
    """The time in seconds, once all work on a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def forward(piece: Piece, inputs: Any, watch: Watch, *, counts_time: bool) -> Any:
    """A piece's output; the time of it counts or is a warm-up's."""
    if not piece.activation_bytes:
        piece.activation_bytes = _kept_bytes(piece, inputs)
    key = (id(piece), "forward", any(tensor.requires_grad for tensor in tensors_of(inputs)))
    seconds, output = watch.time(key, lambda: piece.run(inputs))
    if counts_time:
        piece.times.forward.append(seconds)
    features = piece.main(output)
    piece.features_bytes = features.nbytes
    piece.features_shape = tuple(features.shape)
    piece.beside_bytes = sum(tensor.nbytes for tensor in tensors_of(output)) - features.nbytes
    return output


def leaf(features: Any, *, needs_gradient: bool) -> Any:
    """A copy with no history, as what comes out of a channel."""
    with torch.no_grad():
        return mapped(
            lambda t: t.clone().requires_grad_(needs_gradient and t.is_floating_point()), features
        )


def _kept_bytes(piece: Piece, inputs: Any) -> int:
    """Bytes that the forward keeps for the backward, parameters apart; shared memory once."""
    own = {p.untyped_storage().data_ptr() for p in piece.module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        piece.run(inputs)
    return sum(kept.values())


def backward(piece: Piece, output: Any, watch: Watch, *, first: bool) -> None:
    """Time the backward of a piece's output; none where nothing has a gradient.

    Args:
        piece: Whose output.
        output: What ``forward`` made.
        watch: Times it.
        first: Whether the input has no gradient, as that of a block's first layer.
    """
    seconds = 0.0
    learned = [tensor for tensor in tensors_of(output) if tensor.requires_grad]
    if learned:
        gradients = [torch.full_like(tensor, 1e-3) for tensor in learned]
        work = partial(torch.autograd.backward, learned, gradients)
        seconds, _ = watch.time((id(piece), "backward", first), work)
    times = piece.times.backward_first if first else piece.times.backward
    times.append(seconds)
    if first:
        # Or the next backward would add to them, recorded or not.
        piece.module.zero_grad(set_to_none=True)


def update(piece: Piece, watch: Watch) -> None:
    """A step of the piece's optimizer, if it has one."""
    if piece.optimizer is not None:
        seconds, _ = watch.time((id(piece), "update"), piece.optimizer.step)
        piece.times.update.append(seconds)
        piece.optimizer.zero_grad(set_to_none=True)
