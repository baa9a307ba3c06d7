"""Features of any kind as maps, and maps of another size: what auxiliary networks are made from."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ppll.auxiliary.features import is_channels_last, refuse_tokens, unreadable
from ppll.site import BlockSite

__all__ = [
    "MapTokens",
    "MeanPixel",
    "Resize",
    "TokenMap",
    "as_map",
    "average_weights",
    "bilinear_weights",
    "convolution",
    "token_grid",
]

Weights = Callable[[int, int], Tensor]
"""From sizes before and after to the linear map (after, before) along one side."""


class TokenMap(nn.Module):
    """Token rows (N, T, D) to maps (N, D, rows, columns) of their last rows * columns tokens."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.size = (rows, columns)

    def forward(self, tokens: Tensor) -> Tensor:
        """The tokens as a map; what stands before them, such as a class token, is dropped."""
        rows, columns = self.size
        patches = tokens[:, -rows * columns :]
        return patches.transpose(1, 2).reshape(len(tokens), -1, rows, columns)


class MapTokens(nn.Module):
    """Maps (N, D, rows, columns) to token rows (N, T, D), with zeros before if T is larger."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens

    def forward(self, maps: Tensor) -> Tensor:
        """The map's positions as tokens."""
        tokens = maps.flatten(2).transpose(1, 2)
        return nn.functional.pad(tokens, (0, 0, self.num_tokens - tokens.shape[1], 0))


class MeanPixel(nn.Module):
    """Maps (N, C, H, W) to the mean of every channel (N, C)."""

    def forward(self, maps: Tensor) -> Tensor:
        """The mean over all positions."""
        return maps.mean((2, 3))


class Resize(nn.Module):
    """Maps (N, C, H, W) to another height and width, by a linear map along each side.

    Matrix products are deterministic on every device; torch's bilinear interpolation and adaptive
    pooling are not, backward on CUDA.

    Args:
        size: Height and width before.
        target: Height and width after.
        weights: Makes the linear map of a side.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, size: tuple[int, int], target: tuple[int, int], weights: Weights) -> None:
        super().__init__()
        self._sizes = tuple(zip(size, target, strict=True))
        self._weights = weights
        for name, sizes in zip(("rows", "columns"), self._sizes, strict=True):
            self.register_buffer(name, weights(*sizes), persistent=False)

    def reset_parameters(self) -> None:
        """Compute the linear maps, which are never learned."""
        rows, columns = self._sizes
        self.rows.copy_(self._weights(*rows))
        self.columns.copy_(self._weights(*columns))

    def forward(self, maps: Tensor) -> Tensor:
        """The map in its other size."""
        wide = maps @ self.columns.T
        return (wide.transpose(2, 3) @ self.rows.T).transpose(2, 3).contiguous()


def bilinear_weights(size: int, target: int) -> Tensor:
    """Interpolation between neighbours, the corners on the corners (``align_corners``)."""
    weights = [[0.0] * size for _ in range(target)]
    for i, row in enumerate(weights):
        position = i * (size - 1) / max(1, target - 1)
        below = min(int(position), size - 1)
        row[below] += 1 - (position - below)
        row[min(below + 1, size - 1)] += position - below
    return torch.tensor(weights, dtype=torch.float32)


def average_weights(size: int, target: int) -> Tensor:
    """The windows of adaptive average pooling."""
    weights = [[0.0] * size for _ in range(target)]
    for i, row in enumerate(weights):
        start, stop = i * size // target, -(-(i + 1) * size // target)
        row[start:stop] = [1 / (stop - start)] * (stop - start)
    return torch.tensor(weights, dtype=torch.float32)


def as_map(
    reader: str, site: BlockSite, instead: str = "choose another method.auxiliary"
) -> tuple[nn.Module, tuple[int, int, int]]:
    """What makes maps of the features at a site, and the maps' shape (C, H, W).

    Tokens are laid back on their place in the image, without a class token before them; those that
    fill no such grid make a line (D, T, 1). A vector (D) is a map of one pixel.

    Args:
        reader: Who reads the maps, for messages.
        site: The cut.
        instead: What to do where they cannot be read, beside cutting elsewhere.

    Raises:
        ModelError: Features have another number of dimensions, or every token has a target.
    """
    refuse_tokens(reader, site)
    match site.feature_shape:
        case (channels, height, width) if not is_channels_last(site):
            return nn.Identity(), (channels, height, width)
        case (num_tokens, width):
            size = token_grid(num_tokens, site.input_shape) or (num_tokens, 1)
            return TokenMap(*size), (width, *size)
        case (width,):
            return nn.Unflatten(1, (width, 1, 1)), (width, 1, 1)
    raise unreadable(reader, site, instead)


def token_grid(num_tokens: int, input_shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Rows and columns of tokens that lie on the image like patches, one class token aside.

    Args:
        num_tokens: T.
        input_shape: One sample's shape at the network's input; (C, H, W) of an image.

    Returns:
        None where there is no image, or the tokens fill no grid of its proportions.
    """
    if len(input_shape) != 3:
        return None
    _, height, width = input_shape
    for num_patches in (num_tokens, num_tokens - 1):
        rows = math.isqrt(num_patches * height // width)
        columns = num_patches // max(1, rows)
        if rows * columns == num_patches > 0 and rows * width == columns * height:
            return rows, columns
    return None


def convolution(
    in_channels: int,
    channels: int,
    size: tuple[int, int],
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size but for the stride.

    Along a side of one pixel the kernel is one wide: the rest would see nothing but padding.
    """
    height, width = (3 if side > 1 else 1 for side in size)
    padding = (height // 2, width // 2)
    return nn.Conv2d(
        in_channels, channels, (height, width), stride, padding, groups=groups, bias=bias
    )
