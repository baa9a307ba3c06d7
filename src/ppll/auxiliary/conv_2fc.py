"""One convolution and two fully connected layers: the auxiliary classifier of InfoPro.

Source: Wang et al., "Revisiting Locally Supervised Learning" (ICLR 2021), and the authors' code,
where it is called 1c2f: a 3x3 convolution with batch norm and ReLU (16 to 32 and 32 to 64 channels
with stride 2, 64 to 64 with stride 1), the mean of every channel, and an MLP of one hidden layer.

Of other widths the paper says nothing: below 64 channels are doubled up to 64 with stride 2, from
64 on they are kept. Token rows are read as maps, see ``maps.as_map``; vectors by the same layers,
the convolution on their one pixel.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from torch import nn

from ppll.auxiliary.maps import MeanPixel, as_map, convolution
from ppll.errors import RecipeError
from ppll.site import BlockSite

__all__ = ["conv_2fc"]

_WIDE: Final = 64
"""Channels up to which the convolution doubles them."""


def conv_2fc(site: BlockSite, *, hidden: int = 128) -> nn.Module:
    """InfoPro's 1c2f for what one sample's features look like at a cut.

    Args:
        site: The cut; features are (C, H, W), (T, D) or (D).
        hidden: Hidden units.

    Raises:
        ModelError: Features have another number of dimensions.
        RecipeError: There is no hidden unit.
    """
    if hidden < 1:
        raise RecipeError(f"conv-2fc: hidden must be at least 1, found {hidden}.")
    reading, (channels, *size) = as_map("conv-2fc", site)
    wide = max(channels, min(2 * channels, _WIDE))
    stride = 2 if channels < _WIDE else 1
    return nn.Sequential(
        OrderedDict(
            reading=reading,
            convolution=convolution(channels, wide, (size[0], size[1]), stride=stride),
            norm=nn.BatchNorm2d(wide),
            relu=nn.ReLU(),
            mean=MeanPixel(),
            hidden=nn.Linear(wide, hidden),
            hidden_relu=nn.ReLU(),
            linear=nn.Linear(hidden, site.num_classes),
        )
    )
