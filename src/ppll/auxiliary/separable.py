"""The convolutions that light auxiliary networks are made from, each with batch norm and ReLU."""

from __future__ import annotations

from torch import nn

from ppll.auxiliary.maps import convolution

__all__ = ["depthwise", "halved", "pointwise"]


def pointwise(in_channels: int, channels: int) -> nn.Sequential:
    """A 1x1 convolution: maps (N, in_channels, H, W) to (N, channels, H, W)."""
    layer = nn.Conv2d(in_channels, channels, 1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU())


def depthwise(channels: int, size: tuple[int, int], stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution of every channel by itself: (N, C, H, W) to (N, C, H/stride, W/stride)."""
    layer = convolution(channels, channels, size, stride=stride, groups=channels)
    return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU())


def halved(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width behind a stride of 2."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2
