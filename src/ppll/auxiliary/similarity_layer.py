"""What similarity matching compares: one more convolution behind the features.

Source: Nøkland and Eidnes, "Training Neural Networks with Local Error Signals" (ICML 2019), and the
authors' code: a 3x3 convolution that keeps the channels, without bias; a linear layer for vectors.
Token rows are read as maps, see ``maps.as_map``.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ppll.auxiliary.maps import as_map, convolution
from ppll.site import BlockSite

__all__ = ["similarity_layer"]


def similarity_layer(method: str, site: BlockSite) -> nn.Module:
    """From the features at a cut to maps (N, C, H, W) of as many channels.

    Of vectors (D) it is a linear layer, on maps of one pixel.

    Args:
        method: Who compares, for messages.
        site: The cut.

    Raises:
        ModelError: Features are neither maps nor token rows nor vectors.
    """
    reading, (channels, height, width) = as_map(method, site, "choose another method.name")
    mixing = convolution(channels, channels, (height, width))
    return nn.Sequential(OrderedDict(reading=reading, convolution=mixing))
