"""A layer or an exit that is run and timed alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

__all__ = ["Piece", "Times", "backward", "clock", "forward", "leaf", "update"]


@dataclass
class Times:
    """Repeats of the times of one piece, in seconds."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    backward_first: list[float] = field(default_factory=list)
    update: list[float] = field(default_factory=list)


@dataclass
class Piece:
    """A layer or an exit with what is needed to run it alone."""

    run: Callable[[Tensor], Tensor]
    module: nn.Module
    optimizer: torch.optim.Optimizer | None
    times: Times = field(default_factory=Times)
    activation_bytes: int = 0
    features_bytes: int = 0
    features_shape: tuple[int, ...] = ()

    @property
    def parameter_bytes(self) -> int:
        """Size of its parameters."""
        return sum(p.nbytes for p in self.module.parameters())


def clock(tensor: Tensor) -> float:
    """The time in seconds, once all work on the tensor's device is done."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()


def forward(piece: Piece, inputs: Tensor, *, counts_time: bool) -> Tensor:
    """A piece's output; the time of it counts or is a warm-up's."""
    if not piece.activation_bytes:
        piece.activation_bytes = _kept_bytes(piece, inputs)
    start = clock(inputs)
    output = piece.run(inputs)
    if counts_time:
        piece.times.forward.append(clock(output) - start)
    piece.features_bytes = output.nbytes
    piece.features_shape = tuple(output.shape)
    return output


def leaf(features: Tensor, *, needs_gradient: bool) -> Tensor:
    """A copy with no history, as what comes out of a channel."""
    with torch.no_grad():
        return features.clone().requires_grad_(needs_gradient and features.is_floating_point())


def _kept_bytes(piece: Piece, inputs: Tensor) -> int:
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


def backward(output: Tensor) -> float:
    """Seconds of the backward of a piece's output; none where nothing has a gradient."""
    if not output.requires_grad:
        return 0.0
    gradient = torch.full_like(output, 1e-3)
    start = clock(output)
    torch.autograd.backward(output, gradient)
    return clock(output) - start


def update(piece: Piece) -> None:
    """A step of the piece's optimizer, if it has one."""
    if piece.optimizer is not None:
        parameter = next(piece.module.parameters())
        start = clock(parameter)
        piece.optimizer.step()
        piece.times.update.append(clock(parameter) - start)
        piece.optimizer.zero_grad(set_to_none=True)
