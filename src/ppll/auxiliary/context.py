"""What a block adds to its input: an encoded image, or the encoded input of the block before.

Source: "Go beyond End-to-End Training: Boosting Greedy Local Learning with Context Supply" (arXiv
2312.07636), and the authors' code. The image passes a 3x3 convolution to 12 channels and one to the
input's channels, each with batch norm and ReLU; a previous input passes a 1x1 convolution with
batch norm and ReLU. Adaptive average pooling brings both to the input's size.

The image is scaled to 0 to 1; the authors' is normalised, which the first convolution and norm do
as well. Tokens are maps of their place in the image, and the class token gets nothing; between two
token rows of the same length every token has its own context, the class token, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor, nn

from ppll.auxiliary.features import is_channels_last
from ppll.auxiliary.maps import (
    MapTokens,
    Resize,
    TokenMap,
    as_map,
    average_weights,
    convolution,
    token_grid,
)
from ppll.data.loader import IMAGE
from ppll.errors import ModelError
from ppll.message import PREVIOUS
from ppll.site import BlockSite

__all__ = ["Context", "ContextChoice", "build_context", "check_context"]
__all__ += ["image_encoder", "previous_encoder"]

ContextChoice: TypeAlias = Literal["E", "R1", "R1E"]
"""The encoded image, the encoded input of the block before, or both."""

_WIDTH: Final = 12
_INSTEAD: Final = "choose another method.name"


class Context(nn.Module):
    """The sum of what encoders make of a message's fields.

    Args:
        encoders: By the name of the field that each reads; all return (N, ...) of one shape.
    """

    def __init__(self, encoders: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)

    def forward(self, fields: Mapping[str, Tensor]) -> Tensor:
        """What is added to the block's input."""
        first, *others = (encode(fields[name]) for name, encode in self.encoders.items())
        total: Tensor = sum(others, start=first)
        return total


def check_context(choice: ContextChoice, site: BlockSite, instead: str = _INSTEAD) -> None:
    """Let data pass that have such context.

    Args:
        choice: Of the recipe.
        site: A cut of the network.
        instead: What to do without, for messages.

    Raises:
        ModelError: It has not.
    """
    if "E" in choice and len(site.input_shape) != 3:
        other = "" if site.holds_tokens else "set method.context = 'R1', or "
        raise ModelError(
            "context 'E' encodes images (channels, height, width), but samples have the shape "
            f"{site.input_shape}: {other}{instead}."
        )
    if "R1" in choice and site.holds_tokens:
        raise ModelError(
            "context 'R1' adds what the block before has read, and the first block reads whole "
            f"numbers, tokens: {instead}."
        )


def build_context(choice: ContextChoice, site: BlockSite, instead: str = _INSTEAD) -> Context:
    """The encoders of a block that is not the first.

    With both, the second block has the image alone: its previous input is the image.

    Args:
        choice: Of the recipe.
        site: The block.
        instead: What to do without, for messages.

    Raises:
        ModelError: The block's input, or the data, has no place for such context.
    """
    check_context(choice, site, instead)
    encoders: dict[str, nn.Module] = {}
    if "R1" in choice and not ("E" in choice and site.block_index == 1):
        encoders[PREVIOUS] = previous_encoder(site, instead)
    if "E" in choice:
        encoders[IMAGE] = image_encoder(site, instead)
    return Context(encoders)


class Scaled(nn.Module):
    """Bytes to float32 from 0 to 1; floating point stays as it is."""

    def forward(self, images: Tensor) -> Tensor:
        """The images (N, ...)."""
        if images.dtype == torch.uint8:
            return images.to(torch.float32) / 255
        return images


def image_encoder(site: BlockSite, instead: str = _INSTEAD) -> nn.Module:
    """Images (N, C, H, W), uint8 or floating point, to what is added to a block's input.

    Args:
        site: The block that adds it; the data holds images.
        instead: What to do without, for messages.

    Raises:
        ModelError: The input has no place for them.
    """
    image_channels, height, width = site.input_shape
    (channels, *target), writing = _as_input(site, instead)
    size = (height, width)
    return nn.Sequential(
        Scaled(),
        *_normed(convolution(image_channels, _WIDTH, size, bias=True)),
        *_normed(convolution(_WIDTH, channels, size, bias=True)),
        _pool(size, (target[0], target[1])),
        writing,
    )


def previous_encoder(site: BlockSite, instead: str = _INSTEAD) -> nn.Module:
    """Inputs of the block before (N, ...) to what is added to a block's own.

    Args:
        site: The block that adds it, not the first; the data holds no tokens, or it is not the
            second.
        instead: What to do without, for messages.

    Raises:
        ModelError: One of both inputs is neither a map nor token rows nor a vector.
    """
    here, before = site.block_input_shape, site.previous_input_shape
    if len(here) == len(before) == 2 and here[0] == before[0]:
        num_tokens, channels = here
        mixing = _normed(nn.Conv2d(before[1], channels, 1))
        return nn.Sequential(TokenMap(num_tokens, 1), *mixing, MapTokens(num_tokens))
    read = replace(site, feature_shape=before)
    reading, (in_channels, *size) = as_map("context", read, instead)
    (channels, *target), writing = _as_input(site, instead)
    mixing = _normed(nn.Conv2d(in_channels, channels, 1))
    pool = _pool((size[0], size[1]), (target[0], target[1]))
    return nn.Sequential(reading, *mixing, pool, writing)


def _as_input(site: BlockSite, instead: str) -> tuple[tuple[int, int, int], nn.Module]:
    """The block's input as a map's shape (C, H, W), and what brings such a map to its own shape."""
    match site.block_input_shape:
        case (channels, height, width) if not is_channels_last(
            replace(site, feature_shape=site.block_input_shape)
        ):
            return (channels, height, width), nn.Identity()
        case (num_tokens, width) if grid := token_grid(num_tokens, site.input_shape):
            return (width, *grid), MapTokens(num_tokens)
        case (width,):
            return (width, 1, 1), nn.Flatten()
    raise ModelError(
        "context is added to maps (C, H, W), to token rows (T, D) that lie on the image like "
        f"patches, and to vectors (D), found a block's input of shape {site.block_input_shape}: "
        f"cut elsewhere (split.cuts) or {instead}."
    )


def _normed(layer: nn.Conv2d) -> tuple[nn.Module, ...]:
    return layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU()


def _pool(size: tuple[int, int], target: tuple[int, int]) -> nn.Module:
    return Resize(size, target, average_weights) if size != target else nn.Identity()
