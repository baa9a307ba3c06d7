"""A linear layer on pooled features, all zeros at first: the classifier of local error signals.

Source: Nøkland and Eidnes, "Training Neural Networks with Local Error Signals" (ICML 2019), and the
authors' code: average pooling doubles its window, in height and width by turns, until few enough
numbers are left. Token rows and vectors are read as maps, see ``maps.as_map``.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from ppll.auxiliary.maps import as_map
from ppll.errors import RecipeError
from ppll.site import BlockSite

__all__ = ["pooled_linear"]


class ZeroLinear(nn.Linear):
    """A linear layer that says nothing at first."""

    def reset_parameters(self) -> None:
        """Clear weight and bias."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def pooled_linear(site: BlockSite, *, max_inputs: int = 4096) -> nn.Module:
    """The classifier for what one sample's features look like at a cut.

    Args:
        site: The cut; features are (C, H, W), (T, D) or (D).
        max_inputs: Most numbers that the linear layer reads, unless there are more channels.

    Raises:
        ModelError: Features have another number of dimensions.
        RecipeError: ``max_inputs`` is below 1.
    """
    if max_inputs < 1:
        raise RecipeError(f"pooled-linear: max_inputs must be at least 1, found {max_inputs}.")
    reading, (channels, height, width) = as_map("pooled-linear", site)
    window = _window(channels, (height, width), max_inputs)
    num_inputs = channels * math.ceil(height / window[0]) * math.ceil(width / window[1])
    return nn.Sequential(
        OrderedDict(
            reading=reading,
            pool=nn.AvgPool2d(window, ceil_mode=True),
            flatten=nn.Flatten(),
            linear=ZeroLinear(num_inputs, site.num_classes),
        )
    )


def _window(channels: int, size: tuple[int, int], most: int) -> tuple[int, int]:
    """Height and width of the pool's windows."""
    window = [1, 1]
    side = 0
    while channels * math.prod(-(-s // w) for s, w in zip(size, window, strict=True)) > most:
        if window[0] >= size[0] and window[1] >= size[1]:
            break
        if window[side] < size[side]:
            window[side] *= 2
        side = 1 - side
    return window[0], window[1]
