"""A pooled linear head: the smallest auxiliary network.

Greedy supervised learning reads features like this, and so does every method at its last block.
"""

from __future__ import annotations

from math import prod

from torch import Tensor, nn

from ppll.auxiliary.features import is_channels_last, unreadable
from ppll.auxiliary.maps import token_grid
from ppll.site import BlockSite

__all__ = ["linear"]


class MapHead(nn.Module):
    """Maps (N, C, H, W) to logits (N, classes), from the mean of every channel."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of the classes."""
        logits: Tensor = self.linear(features.mean((2, 3)))
        return logits


class TokenHead(nn.Module):
    """Token rows (N, T, D) to logits (N, classes), from the first token, the class token.

    The layer norm stands for the one that ends a pre-norm transformer: behind any other layer the
    tokens are not normed yet.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the classes."""
        logits: Tensor = self.linear(self.norm(tokens[:, 0]))
        return logits


class MeanTokenHead(TokenHead):
    """Token rows (N, T, D) to logits (N, classes), from the mean of all tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the classes."""
        logits: Tensor = self.linear(self.norm(tokens.mean(1)))
        return logits


class EveryTokenHead(TokenHead):
    """Token rows (N, T, D) to logits (N, T, tokens), from every token."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the tokens that follow."""
        logits: Tensor = self.linear(self.norm(tokens))
        return logits


def linear(site: BlockSite) -> nn.Module:
    """A linear layer on the mean of a map, on the class token, or on a vector as it is.

    Where every token has a target, it reads every token. Where there is no class token, it reads
    the mean: where all tokens lie on the image like patches, and where samples are no images.

    Args:
        site: The cut; features are (C, H, W), (T, D) or (D).

    Raises:
        ModelError: Features have another number of dimensions.
    """
    num_classes = site.num_classes
    match site.feature_shape:
        case (channels, _, _) if not is_channels_last(site):
            return MapHead(channels, num_classes)
        case (_, width) if site.predicts_tokens:
            return EveryTokenHead(width, num_classes)
        case (num_tokens, width) if _has_class_token(num_tokens, site.input_shape):
            return TokenHead(width, num_classes)
        case (_, width):
            return MeanTokenHead(width, num_classes)
        case (width,):
            return nn.Linear(width, num_classes)
    raise unreadable("linear", site)


def _has_class_token(num_tokens: int, input_shape: tuple[int, ...]) -> bool:
    """Whether the first token of a row is none of the sample's own."""
    grid = token_grid(num_tokens, input_shape)
    return len(input_shape) == 3 and (grid is None or prod(grid) < num_tokens)
