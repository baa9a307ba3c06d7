"""Vision transformers (Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021).

Pre-norm layers, a class token, learned positions, GELU. Dropout stands where the paper has it
(appendix B.1): behind every dense layer but the one that makes queries, keys and values, and
behind the addition of positions. Linear layers of the transformer, class token and positions start
as in the authors' code (google-research/vision_transformer), but that queries, keys and values are
one matrix here, for which Glorot's rule gives values smaller by the square root of 2. The widths of
``vit-tiny`` and ``vit-small`` are those of DeiT (Touvron et al., ICML 2021).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppll.errors import RecipeError
from ppll.models.network import Layer, Network
from ppll.models.options import (
    check_counts,
    check_dropout,
    check_heads,
    hidden_width,
    image_shape,
)

__all__ = ["vit", "vit_small", "vit_tiny"]


class Linear(nn.Linear):
    """A linear layer with Glorot's first values: they keep the scale at any width.

    A fixed standard deviation of 0.02, as DeiT has it, starts narrow networks too quietly.
    """

    def reset_parameters(self) -> None:
        """Draw the weight and clear the bias."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)


class PatchEmbedding(nn.Module):
    """Images (N, C, H, W) to token rows (N, T, D): the class token, then a token for each patch."""

    no_decay: ClassVar[frozenset[str]] = frozenset({"class_token", "positions"})
    """Own parameters that weight decay leaves alone."""

    def __init__(
        self, in_channels: int, num_patches: int, patch_size: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, num_patches + 1, width))
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Clear the class token and draw the positions; the projection resets itself."""
        nn.init.zeros_(self.class_token)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Tokens with their positions added."""
        patches = self.projection(images).flatten(2).transpose(1, 2)
        class_tokens = self.class_token.expand(len(images), -1, -1)
        tokens: Tensor = self.dropout(torch.cat((class_tokens, patches), dim=1) + self.positions)
        return tokens


class SelfAttention(nn.Module):
    """Token rows (N, T, D) to rows of the same shape, every token having looked at all."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.projection = Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """What the heads found, side by side, projected."""
        # (N, T, 3 D) to three of (N, heads, T, D / heads)
        queries, keys, values = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(tokens).chunk(3, dim=2)
        )
        found = F.scaled_dot_product_attention(queries, keys, values)
        projected: Tensor = self.projection(found.transpose(1, 2).flatten(2))
        return projected


class TransformerLayer(nn.Module):
    """Self-attention and an MLP, each normed before and added to its input: (N, T, D) to itself."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.expand = Linear(width, hidden)
        self.contract = Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens with what attention and MLP add to them."""
        tokens = tokens + self.dropout(self.attention(self.norm1(tokens)))
        hidden = self.dropout(F.gelu(self.expand(self.norm2(tokens))))
        update: Tensor = self.dropout(self.contract(hidden))
        return tokens + update


class Head(nn.Module):
    """Token rows (N, T, D) to logits (N, classes): a linear layer reads the normed class token."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the classes."""
        logits: Tensor = self.linear(self.norm(tokens[:, 0]))
        return logits


def vit(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    patch_size: int = 4,
    width: int = 192,
    depth: int = 12,
    heads: int = 3,
    mlp_ratio: float = 4.0,
    dropout: float = 0.0,
) -> Network:
    """A vision transformer of any size.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: Length of the logits.
        patch_size: Height and width of a patch, in pixels; must divide those of the image.
        width: Length D of a token.
        depth: Number of transformer layers.
        heads: Attention heads of a layer; must divide the width.
        mlp_ratio: Hidden units of the MLP for each unit of the width.
        dropout: Share of units dropped in training, 0 to below 1.

    Returns:
        The layers ``stem``, ``layer0`` to ``layer{depth-1}``, ``head``.

    Raises:
        RecipeError: An option is out of range, or samples are no images.
    """
    channels, image_height, image_width = image_shape("vit", input_shape)
    check_counts(patch_size=patch_size, width=width, depth=depth, heads=heads)
    num_patches = _num_patches(image_height, image_width, patch_size)
    hidden = hidden_width(width, mlp_ratio)
    check_heads(width, heads)
    check_dropout(dropout)
    layers = (
        Layer("stem", PatchEmbedding(channels, num_patches, patch_size, width, dropout)),
        *(
            Layer(f"layer{index}", TransformerLayer(width, heads, hidden, dropout))
            for index in range(depth)
        ),
        Layer("head", Head(width, num_classes)),
    )
    return Network(layers, num_stem=1, num_head=1)


def _num_patches(height: int, width: int, patch_size: int) -> int:
    if height % patch_size or width % patch_size:
        raise RecipeError(
            f"model.patch_size = {patch_size} must divide the image's height and width, "
            f"found {height} x {width}."
        )
    return (height // patch_size) * (width // patch_size)


def vit_tiny(
    input_shape: tuple[int, ...], num_classes: int, *, patch_size: int = 4, dropout: float = 0.0
) -> Network:
    """ViT-Tiny: twelve layers of width 192 with three heads; see ``vit``."""
    return vit(input_shape, num_classes, patch_size=patch_size, dropout=dropout)


def vit_small(
    input_shape: tuple[int, ...], num_classes: int, *, patch_size: int = 4, dropout: float = 0.0
) -> Network:
    """ViT-Small: twelve layers of width 384 with six heads; see ``vit``."""
    return vit(input_shape, num_classes, patch_size=patch_size, width=384, heads=6, dropout=dropout)
