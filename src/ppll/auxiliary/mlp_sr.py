"""MLP-SR: an MLP behind spatial reduction, the auxiliary network of decoupled greedy learning.

Source: Belilovsky, Eickenberg and Oyallon, "Decoupled greedy learning of CNNs" (ICML 2020), and
the authors' code: maps are averaged down by four, pass three 1x1 convolutions, are averaged to
2x2 and read by an MLP of three hidden layers. It costs a few percent of the network.

Differences from the original, and what it does where the original says nothing:

- A map is not averaged below the 2x2 that the MLP reads; the original makes one pixel of a map
  of 4x4 or less and repeats it four times.
- Windows of a pool are all equally large. They are the windows of adaptive pooling where those are
  (sizes that divide, and always for 2x2); adaptive pooling itself has no deterministic backward
  on CUDA.
- Token rows that lie on the image like patches, with or without a class token before them, are laid
  back on it and read as a map. The class token is dropped: it has no place there.
- Of other token rows the mean is read by the MLP, with layer norm.
- Vectors are read by the MLP alone, and so is every token, with layer norm, where each has a
  target.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from torch import nn

from ppll.auxiliary.features import MeanToken, is_channels_last, unreadable
from ppll.auxiliary.maps import TokenMap, token_grid
from ppll.site import BlockSite

__all__ = ["mlp_sr"]

_NUM_LAYERS: Final = 3
"""Convolutions before the second pool, and hidden layers behind it."""
_REDUCTION: Final = 4
"""The first pool makes height and width so many times smaller."""
_POOLED: Final = 2
"""Height and width of the map that the MLP reads."""


def mlp_sr(site: BlockSite) -> nn.Module:
    """MLP-SR for what one sample's features look like at a cut.

    Args:
        site: The cut; features are (C, H, W), (T, D) or (D).

    Raises:
        ModelError: Features have another number of dimensions.
    """
    num_classes = site.num_classes
    match site.feature_shape:
        case (channels, height, width) if not is_channels_last(site):
            return _on_maps(channels, (height, width), num_classes)
        case (_, width) if site.predicts_tokens:
            return _mlp(width, num_classes, nn.LayerNorm)
        case (num_tokens, width):
            grid = token_grid(num_tokens, site.input_shape)
            return _on_tokens(grid, width, num_classes)
        case (width,):
            return _mlp(width, num_classes, nn.BatchNorm1d)
    raise unreadable("mlp-sr", site)


def _on_maps(channels: int, size: tuple[int, int], num_classes: int) -> nn.Sequential:
    reduced = (_reduced(size[0]), _reduced(size[1]))
    pooled = (min(_POOLED, size[0]), min(_POOLED, size[1]))
    return nn.Sequential(
        OrderedDict(
            reduce=_average_pool(size, reduced),
            convolutions=_convolutions(channels),
            pool=_average_pool(reduced, pooled),
            flatten=nn.Flatten(),
            mlp=_mlp(channels * pooled[0] * pooled[1], num_classes, nn.BatchNorm1d),
        )
    )


def _on_tokens(grid: tuple[int, int] | None, width: int, num_classes: int) -> nn.Sequential:
    if grid is not None:
        maps = _on_maps(width, grid, num_classes)
        return nn.Sequential(OrderedDict(grid=TokenMap(*grid), maps=maps))
    return nn.Sequential(OrderedDict(mean=MeanToken(), mlp=_mlp(width, num_classes, nn.LayerNorm)))


def _reduced(size: int) -> int:
    return min(size, max(_POOLED, math.ceil(size / _REDUCTION)))


def _average_pool(size: tuple[int, int], target: tuple[int, int]) -> nn.AvgPool2d:
    """Equal windows, overlapping if need be, that cover a map and leave ``target`` of it."""
    stride = (size[0] // target[0], size[1] // target[1])
    kernel = (
        size[0] - (target[0] - 1) * stride[0],
        size[1] - (target[1] - 1) * stride[1],
    )
    return nn.AvgPool2d(kernel, stride)


def _convolutions(channels: int) -> nn.Sequential:
    """1x1 convolutions, each with batch norm, which makes a bias idle."""
    layers: list[nn.Module] = []
    for _ in range(_NUM_LAYERS):
        layers += [
            nn.Conv2d(channels, channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def _mlp(width: int, num_classes: int, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(_NUM_LAYERS):
        layers += [nn.Linear(width, width, bias=False), norm(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, num_classes))
