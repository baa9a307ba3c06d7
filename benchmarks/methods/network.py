"""A small convolutional network whose layers also sleep, as if each ran on a device of its own."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn
from torch.autograd import Function

from ppll.baselines.sleeping import Sleeper

__all__ = ["SleepingLayer", "sleeping_network"]


class SleepingLayer(nn.Module):
    """A module that takes longer than it computes, forward and backward.

    Args:
        module: What it computes.
        forward_s: Seconds that its forward sleeps.
        backward_s: Seconds that its backward sleeps, and the backward of that again.
    """

    def __init__(self, module: nn.Module, forward_s: float, backward_s: float) -> None:
        super().__init__()
        self.module = module
        self.forward_s = forward_s
        self.backward_s = backward_s

    def forward(self, inputs: Tensor) -> Tensor:
        """What the module makes of the inputs, after a while."""
        outputs: Tensor = _Sleep.apply(  # type: ignore[no-untyped-call]
            self.module(inputs), self.forward_s, self.backward_s
        )
        return outputs


class _Sleep(Function):
    """The identity; it can be differentiated as often as a loss asks for."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, seconds: float, backward_s: float) -> Tensor:
        ctx.backward_s = backward_s
        _sleeper()(seconds)
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Sleep.apply(gradient, ctx.backward_s, ctx.backward_s), None, None  # type: ignore[no-untyped-call]


@functools.cache
def _sleeper() -> Sleeper:
    """The process's own."""
    return Sleeper()


def sleeping_network(
    num_layers: int, width: int, forward_s: float, backward_s: float
) -> list[nn.Module]:
    """Layers for images (N, 1, H, W) and ten classes, each of which sleeps.

    Args:
        num_layers: How many, at least 2.
        width: Channels.
        forward_s: Seconds that a layer sleeps in its forward.
        backward_s: Seconds that it sleeps in its backward.
    """
    modules = [_convolution(width if i else 1, width) for i in range(num_layers - 1)]
    modules.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)))
    return [SleepingLayer(module, forward_s, backward_s) for module in modules]


def _convolution(in_channels: int, channels: int) -> nn.Sequential:
    layer = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU())
