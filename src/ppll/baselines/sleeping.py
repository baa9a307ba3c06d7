"""A chunk that sleeps where a network computes, in a form that torch can run backward by halves.

The backward of a chunk consists of two nodes of the autograd graph, since pipelines that avoid
bubbles run its halves apart (``torch.distributed.pipelining._backward``): the gradient of the
input goes back at once, that of the weights waits for idle time. A function's
``ctx.needs_input_grad`` does not say which of them is wanted: it is that of the forward. What the
engine leaves out are whole nodes that lie on no path to what it is asked for, so each half is one::

    input  -> [_InputHalf] --\\
                              [_Forward] -> output
    weight -> [_WeightHalf] -/

``[_Forward]`` is where the paths meet, the node at which torch parks the output's gradient
between the halves.
"""

from __future__ import annotations

import ctypes
import sys
import time
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["EmulatedChunk", "Sleeper"]

_PR_SET_TIMERSLACK: Final = 29
_MOST_LATE_S: Final = 2e-4


class Sleeper:
    """Sleeps as long as a device would compute, to some microseconds.

    A sleep ends late by the time it takes to wake up, 20 to 150 us, which would be held against
    those who sleep often and briefly. So the next sleep is asked for less by as much; not by more
    than 0.2 ms, since what is later than that has waited for a processor.
    """

    def __init__(self) -> None:
        if sys.platform == "linux":
            # Else the kernel adds up to 50 us of its own choice.
            ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
        self._late_s = 0.0

    def __call__(self, seconds: float) -> None:
        """Return after so many seconds."""
        if seconds <= 0:
            return
        begin_s = time.monotonic()
        wanted_s = max(0.0, seconds - self._late_s)
        time.sleep(wanted_s)
        late_s = time.monotonic() - begin_s - wanted_s
        self._late_s = min(late_s, _MOST_LATE_S)


class EmulatedChunk(nn.Module):
    """Sleeps in its forward and in each half of its backward: (1, K) to (1, L).

    What it returns lies in the same memory every time, as a device's own buffers do; nobody reads
    the values.

    Args:
        sleeper: Of the process.
        forward_s: Seconds of the forward.
        backward_s: Seconds of the backward.
        weight_share: Part of the backward that makes the weights' gradients.
        inputs: What comes in looks like this.
        outputs: What goes out looks like this.
        parameter_bytes: Size of the weights.
    """

    def __init__(
        self,
        sleeper: Sleeper,
        forward_s: float,
        backward_s: float,
        weight_share: float,
        inputs: Tensor,
        outputs: Tensor,
        parameter_bytes: int = 0,
    ) -> None:
        super().__init__()
        self._sleeper = sleeper
        self._forward_s, self._backward_s = forward_s, backward_s
        self._weight_share = weight_share
        num_weights = max(1, parameter_bytes // torch.float32.itemsize)
        self.weight = nn.Parameter(torch.zeros(num_weights))
        self._outputs = torch.zeros(outputs.shape)
        self._input_gradient = torch.zeros(inputs.shape)
        self._weight_gradient = torch.zeros(num_weights)

    def forward(self, inputs: Tensor) -> Tensor:
        """The output, after a while."""
        # Without a gradient to send on, a backward still takes its time: for the layers within.
        weight_s = self._backward_s * (self._weight_share if inputs.requires_grad else 1.0)
        inputs = _InputHalf.apply(  # type: ignore[no-untyped-call]
            inputs, self._sleeper, self._backward_s - weight_s
        )
        token = _WeightHalf.apply(  # type: ignore[no-untyped-call]
            self.weight, self._sleeper, weight_s, self._weight_gradient
        )
        self._sleeper(self._forward_s)
        outputs: Tensor = _Forward.apply(  # type: ignore[no-untyped-call]
            inputs, token, self._outputs, self._input_gradient
        )
        return outputs


class _Forward(torch.autograd.Function):
    """Makes the output; backward it gives both halves their cue at no cost."""

    @staticmethod
    def forward(
        ctx: Any, _inputs: Tensor, _token: Tensor, outputs: Tensor, gradient: Tensor
    ) -> Tensor:
        ctx.gradient = gradient
        return _twin(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _twin(ctx.gradient), gradient.new_zeros(()), None, None


class _InputHalf(torch.autograd.Function):
    """The identity; backward it sleeps."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, sleeper: Sleeper, seconds: float) -> Tensor:
        ctx.sleeper, ctx.seconds = sleeper, seconds
        return inputs.view_as(inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ctx.sleeper(ctx.seconds)
        return gradient, None, None


class _WeightHalf(torch.autograd.Function):
    """Makes a scalar of the weights; backward it sleeps and makes their gradient."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, sleeper: Sleeper, seconds: float, gradient: Tensor
    ) -> Tensor:
        ctx.sleeper, ctx.seconds, ctx.gradient = sleeper, seconds, gradient
        return weight.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _gradient: Tensor) -> tuple[Tensor | None, ...]:
        ctx.sleeper(ctx.seconds)
        return _twin(ctx.gradient), None, None, None


def _twin(tensor: Tensor) -> Tensor:
    """A tensor of its own on the same memory: no view, so torch may cut it off its graph."""
    twin = torch.empty(0)
    twin.set_(tensor.untyped_storage(), 0, tensor.shape, tensor.stride())
    return twin
