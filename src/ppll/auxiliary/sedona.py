"""Light convolutions of a chosen depth: the auxiliary networks of SEDONA.

Source: Pyeon et al., "SEDONA: Search for Decoupled Neural Networks" (ICLR 2021), and the authors'
code: a separable 3x3 convolution with stride 2, ``depth - 1`` inverted residual layers, a 1x1
convolution, the mean of every channel and a linear layer. Every second inverted residual layer
halves the map again and widens it.

For networks of bottleneck layers the authors divide the channels by the expansion of 4 that the
inverted residual layers have; for basic layers, such as all of ours have, there is no expansion.
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

__all__ = ["sedona"]

_DEEPEST: Final = 4
Size = tuple[int, int]


class InvertedResidual(nn.Module):
    """Widen, filter every channel, narrow: (N, C, H, W) to (N, channels, H/stride, W/stride).

    The input is added where the shape stays (Sandler et al., "MobileNetV2", CVPR 2018).
    """

    def __init__(
        self, in_channels: int, channels: int, size: Size, stride: int, expansion: int
    ) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.adds_input = stride == 1 and in_channels == channels
        self.widen = pointwise(in_channels, wide) if expansion > 1 else nn.Identity()
        self.filter = depthwise(wide, size, stride)
        self.narrow = nn.Conv2d(wide, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, maps: Tensor) -> Tensor:
        """The narrow maps, without a ReLU."""
        update: Tensor = self.norm(self.narrow(self.filter(self.widen(maps))))
        return maps + update if self.adds_input else update


def sedona(
    site: BlockSite, *, depth: int = 2, expansion: int = 1, final_width: int = 512
) -> nn.Module:
    """SEDONA's auxiliary network for what one sample's features look like at a cut.

    Args:
        site: The cut; features are (C, H, W), (T, D) or (D).
        depth: 1 to 4.
        expansion: Of inverted residual layers; channels are divided by it.
        final_width: Channels of the 1x1 convolution.

    Raises:
        ModelError: Features have another number of dimensions.
        RecipeError: An option is out of range.
    """
    if not 1 <= depth <= _DEEPEST:
        raise RecipeError(f"sedona: depth must be 1 to {_DEEPEST}, found {depth}.")
    if expansion < 1 or final_width < 1:
        raise RecipeError(
            "sedona: expansion and final_width must be at least 1, "
            f"found {expansion} and {final_width}."
        )
    reading, (channels, height, width) = as_map("sedona", site)
    layers, out_channels = _layers(channels, (height, width), depth, expansion)
    return nn.Sequential(
        OrderedDict(
            reading=reading,
            layers=nn.Sequential(*layers),
            last=pointwise(out_channels, final_width),
            mean=MeanPixel(),
            linear=nn.Linear(final_width, site.num_classes),
        )
    )


def _layers(channels: int, size: Size, depth: int, expansion: int) -> tuple[list[nn.Module], int]:
    """All but the last convolution, and the channels that leave them."""
    planes = max(1, channels // expansion)
    increment = planes if expansion == 1 else planes // 2
    layers: list[nn.Module] = [pointwise(channels, planes), depthwise(planes, size, 2)]
    size = halved(size)
    for index in range(depth - 1):
        stride = 2 if index % 2 == 1 and max(size) > 1 else 1
        wider = planes + increment * (stride - 1)
        layers.append(InvertedResidual(planes, wider, size, stride, expansion))
        planes = wider
        size = halved(size) if stride == 2 else size
    return layers, planes
