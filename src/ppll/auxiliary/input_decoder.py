"""LoPT's auxiliary network: a narrow decoder from a block's features to the block's own input.

Source: "LoPT" (arXiv 2605.04913) and the authors' code, for the hidden states of language models:
layer norm, a linear layer to a quarter of the width, GELU, a linear layer back, both drawn by
Xavier's rule with a gain of 0.1. That is what token rows get here. What it does elsewhere is ours:

- Maps: a norm over all of a sample, and 1x1 convolutions in place of the linear layers. Where the
  block makes the map smaller, each of its pixels decodes the window that it came from, so the last
  convolution makes as many channels as there are in a window.
- Token rows of a block that reads images: each token but the class token decodes its patch.
- Vectors decode all of the input at once.
- Rows of a block that reads tokens decode which token each was.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

from torch import Tensor, nn

from ppll.auxiliary.features import is_channels_last
from ppll.auxiliary.maps import TokenMap, token_grid
from ppll.errors import ModelError
from ppll.site import BlockSite

__all__ = ["input_decoder"]

_NARROWING: Final = 4
"""The hidden width is that of the features, made so many times smaller."""
_GAIN: Final = 0.1


class Linear(nn.Linear):
    """A linear layer that starts quietly."""

    def reset_parameters(self) -> None:
        """Draw the weight and clear the bias."""
        nn.init.xavier_uniform_(self.weight, gain=_GAIN)
        nn.init.zeros_(self.bias)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution that starts quietly."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(in_channels, channels, kernel_size=1)

    def reset_parameters(self) -> None:
        """Draw the weight and clear the bias."""
        nn.init.xavier_uniform_(self.weight, gain=_GAIN)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class Windows(nn.Module):
    """Maps (N, C * h * w, H, W) to larger ones (N, C, H * h, W * w), cut off at ``size``.

    The channels of a pixel become the window in its place.
    """

    def __init__(self, window: tuple[int, int], size: tuple[int, int]) -> None:
        super().__init__()
        self.window = window
        self.size = size

    def forward(self, maps: Tensor) -> Tensor:
        """The larger maps."""
        (high, wide), (height, width) = self.window, self.size
        num, _, rows, columns = maps.shape
        # (N, C, h, w, H, W) to (N, C, H, h, W, w)
        windows = maps.reshape(num, -1, high, wide, rows, columns).permute(0, 1, 4, 2, 5, 3)
        return windows.reshape(num, -1, rows * high, columns * wide)[:, :, :height, :width]


def input_decoder(site: BlockSite) -> nn.Module:
    """The decoder for what a block reads and makes.

    Args:
        site: The block; its features (N, *feature_shape) become (N, *block_input_shape), or logits
            (N, T, tokens) where the input is tokens (N, T).

    Raises:
        ModelError: There is no way from the one to the other.
    """
    if site.reads_tokens:
        return _on_tokens(site)
    match site.feature_shape, site.block_input_shape:
        case (width,), shape:
            return nn.Sequential(*_rows(width, math.prod(shape)), nn.Unflatten(1, shape))
        case (num_tokens, width), (num_before, width_before) if num_tokens == num_before:
            return nn.Sequential(*_rows(width, width_before))
        case (_, _), (_, _, _):
            return _on_patches(site)
        case (_, _, _), (_, _, _) if not is_channels_last(site):
            return _on_maps(site)
    raise _impossible(site)


def _rows(width: int, width_before: int) -> list[nn.Module]:
    hidden = max(1, width // _NARROWING)
    return [nn.LayerNorm(width), Linear(width, hidden), nn.GELU(), Linear(hidden, width_before)]


def _on_tokens(site: BlockSite) -> nn.Module:
    """From token rows (T, D) to logits of the tokens (T) that they stand for."""
    match site.feature_shape, site.num_tokens:
        case (num_rows, width), int(num_tokens) if (num_rows,) == site.block_input_shape:
            return nn.Sequential(*_rows(width, num_tokens))
    raise _impossible(site)


def _on_patches(site: BlockSite) -> nn.Module:
    """From token rows (T, D) to an image (C, H, W)."""
    num_tokens, width = site.feature_shape
    channels, height, image_width = site.block_input_shape
    grid = token_grid(num_tokens, site.block_input_shape)
    if grid is None or height % grid[0]:
        raise _impossible(site)
    patch = (height // grid[0], image_width // grid[1])
    return nn.Sequential(
        OrderedDict(
            rows=nn.Sequential(*_rows(width, channels * patch[0] * patch[1])),
            grid=TokenMap(*grid),
            windows=Windows(patch, (height, image_width)),
        )
    )


def _on_maps(site: BlockSite) -> nn.Module:
    """From maps (C, H, W) to maps (C', H', W') that are no smaller."""
    channels, height, width = site.feature_shape
    channels_before, height_before, width_before = site.block_input_shape
    if height > height_before or width > width_before:
        raise _impossible(site)
    window = (math.ceil(height_before / height), math.ceil(width_before / width))
    hidden = max(1, channels // _NARROWING)
    return nn.Sequential(
        nn.GroupNorm(1, channels),
        Pointwise(channels, hidden),
        nn.GELU(),
        Pointwise(hidden, channels_before * window[0] * window[1]),
        Windows(window, (height_before, width_before)),
    )


def _impossible(site: BlockSite) -> ModelError:
    return ModelError(
        f"method 'lopt' finds a block's input again in its features, but knows no way from "
        f"{site.feature_shape} back to {site.block_input_shape} in block {site.block_index}: it "
        f"decodes maps into maps that are no smaller, token rows into rows of as many tokens, into "
        f"these tokens or into the image whose patches they are, and vectors into all but tokens. "
        f"Cut elsewhere (split.cuts) or choose another method."
    )
