"""Separable convolutions down to a small map, and two residual ones on it.

A design of this project: on a map of 4x4 a head can be as deep and as wide as the network's last
stage and still cost little, and heads that are deep tell a block more than heads that are wide.
It consists of depthwise 3x3 convolutions with stride 2, each with a 1x1 convolution that doubles
the channels up to the width of the network's last map, until the map is 4x4; then residual layers
of a depthwise and two 1x1 convolutions; then the mean of every channel and a linear layer.
Token rows and vectors are read as maps, see ``maps.as_map``.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from torch import Tensor, nn

from ppll.auxiliary.maps import MeanPixel, as_map
from ppll.auxiliary.separable import depthwise, halved, pointwise
from ppll.errors import RecipeError
from ppll.site import BlockSite

__all__ = ["strided_separable"]

_SMALL: Final = 4
"""Height and width at which a map is no longer halved."""


class ResidualSeparable(nn.Module):
    """Maps (N, C, H, W) and what a depthwise and two 1x1 convolutions add to them."""

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.filter = depthwise(channels, size)
        self.mix = pointwise(channels, channels)
        self.last = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """The maps after the addition and a ReLU."""
        update: Tensor = self.norm(self.last(self.mix(self.filter(maps))))
        result: Tensor = self.relu(maps + update)
        return result


def strided_separable(site: BlockSite, *, depth: int = 2, width: int = 0) -> nn.Module:
    """The classifier for what one sample's features look like at a cut.

    Args:
        site: The cut; features are (C, H, W), (T, D) or (D).
        depth: Residual layers on the small map.
        width: Channels on the small map; 0 for those of the network's last map.

    Raises:
        ModelError: Features have another number of dimensions.
        RecipeError: An option is negative.
    """
    if min(depth, width) < 0:
        raise RecipeError(
            f"strided-separable: depth and width must be at least 0, found {depth} and {width}."
        )
    reading, (channels, *sides) = as_map("strided-separable", site)
    width = width or _last_width(site, channels)
    reduction, size = _reduction(channels, (sides[0], sides[1]), width)
    return nn.Sequential(
        OrderedDict(
            reading=reading,
            reduction=reduction,
            residual=nn.Sequential(*(ResidualSeparable(width, size) for _ in range(depth))),
            mean=MeanPixel(),
            linear=nn.Linear(width, site.num_classes),
        )
    )


def _last_width(site: BlockSite, channels: int) -> int:
    """Channels of the last features behind the cut that are maps or token rows."""
    for shape in reversed(site.shapes_behind):
        if len(shape) > 1:
            return shape[0] if len(shape) == 3 else shape[-1]
    return channels


def _reduction(
    channels: int, size: tuple[int, int], width: int
) -> tuple[nn.Sequential, tuple[int, int]]:
    """Down to the small map and up to the width; and the small map's size."""
    layers: list[nn.Module] = []
    while max(size) > _SMALL:
        wider = min(2 * channels, width) if channels < width else width
        layers += [depthwise(channels, size, 2), pointwise(channels, wider)]
        channels, size = wider, halved(size)
    if channels != width:
        layers.append(pointwise(channels, width))
    return nn.Sequential(*layers), size
