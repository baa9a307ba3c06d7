"""Causal transformers that predict the next token (Radford et al., GPT-2, 2019).

Pre-norm layers, GELU, and positions that are learned or rotary (Su et al., "RoFormer", 2021,
arXiv 2104.09864). The head has weights of its own: tied to the embedding they would be cut apart.
Linear layers start by Glorot's rule, those that add to the rows smaller by the square root of how
many there are, as in GPT-2. The embedding starts with a deviation of 0.3, for what the first layers
add must not drown it.
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppll.errors import RecipeError
from ppll.models.lora import Linears, frozen_but_lora
from ppll.models.network import Layer, Network
from ppll.models.options import check_counts, check_dropout, check_heads, hidden_width, token_shape

__all__ = ["Positions", "gpt"]

Positions: TypeAlias = Literal["learned", "rotary"]

_STD: Final = 0.3
_BASE: Final = 10_000.0
"""Longest wave of rotary positions, in tokens over two pi."""


class TokenEmbedding(nn.Module):
    """Tokens (N, T) of int64 to rows (N, T, D), with learned positions where they are wanted."""

    no_decay: ClassVar[frozenset[str]] = frozenset({"tokens", "positions"})
    """Own parameters that weight decay leaves alone."""

    def __init__(
        self, num_tokens: int, num_positions: int, width: int, dropout: float, *, learned: bool
    ) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(num_tokens, width))
        self.positions = nn.Parameter(torch.empty(num_positions, width)) if learned else None
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both tables."""
        nn.init.normal_(self.tokens, std=_STD)
        if self.positions is not None:
            nn.init.normal_(self.positions, std=_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """The tokens' rows; there may be fewer tokens than positions."""
        rows = F.embedding(tokens, self.tokens)
        if self.positions is not None:
            rows = rows + self.positions[: tokens.shape[1]]
        dropped: Tensor = self.dropout(rows)
        return dropped


class Rotation(nn.Module):
    """Turns pairs of numbers in (N, heads, T, D) by angles that grow with the position."""

    cosines: Tensor
    sines: Tensor

    def __init__(self, num_positions: int, width: int) -> None:
        super().__init__()
        for name in ("cosines", "sines"):
            empty = torch.empty(num_positions, width // 2)
            self.register_buffer(name, empty, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Compute both tables, which are never learned."""
        num_positions, half = self.cosines.shape
        device = self.cosines.device
        waves = _BASE ** (-torch.arange(half, device=device, dtype=torch.float64) / half)
        angles = torch.arange(num_positions, device=device)[:, None] * waves
        self.cosines.copy_(angles.cos())
        self.sines.copy_(angles.sin())

    def forward(self, rows: Tensor) -> Tensor:
        """The rows, each turned by its position."""
        first, second = rows.chunk(2, dim=-1)
        cosines, sines = (table[: rows.shape[2]] for table in (self.cosines, self.sines))
        return torch.cat(
            (first * cosines - second * sines, second * cosines + first * sines), dim=-1
        ).to(rows.dtype)


class CausalAttention(nn.Module):
    """Rows (N, T, D) to rows of the same shape, every token having looked at those up to it."""

    def __init__(
        self, width: int, heads: int, rotation: nn.Module, linear: Linears, gain: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(width, 3 * width)
        self.projection = linear(width, width, gain=gain)
        self.rotation = rotation

    def forward(self, rows: Tensor) -> Tensor:
        """What the heads found, side by side, projected."""
        # (N, T, 3 D) to three of (N, heads, T, D / heads)
        queries, keys, values = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(rows).chunk(3, dim=2)
        )
        queries, keys = self.rotation(queries), self.rotation(keys)
        found = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        projected: Tensor = self.projection(found.transpose(1, 2).flatten(2))
        return projected


class CausalLayer(nn.Module):
    """Causal attention and an MLP, each normed before and added to its input: (N, T, D)."""

    def __init__(
        self,
        attention: CausalAttention,
        width: int,
        hidden: int,
        linear: Linears,
        gain: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = attention
        self.norm2 = nn.LayerNorm(width)
        self.expand = linear(width, hidden)
        self.contract = linear(hidden, width, gain=gain)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows with what attention and MLP add to them."""
        rows = rows + self.dropout(self.attention(self.norm1(rows)))
        hidden = F.gelu(self.expand(self.norm2(rows)))
        update: Tensor = self.dropout(self.contract(hidden))
        return rows + update


class Readout(nn.Module):
    """Rows (N, T, D) to logits (N, T, tokens): a linear layer reads the normed rows."""

    def __init__(self, width: int, num_tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, num_tokens)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits of the next tokens."""
        logits: Tensor = self.linear(self.norm(rows))
        return logits


def gpt(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: int = 128,
    depth: int = 8,
    heads: int = 4,
    mlp_ratio: float = 4.0,
    dropout: float = 0.0,
    positions: Positions = "learned",
    lora_rank: int = 0,
    lora_alpha: float = 16.0,
) -> Network:
    """A causal transformer of any size.

    Args:
        input_shape: (T,) of one row of tokens.
        num_classes: Tokens there are; length of the logits.
        width: Length D of a row.
        depth: Number of transformer layers.
        heads: Attention heads of a layer; must divide the width.
        mlp_ratio: Hidden units of the MLP for each unit of the width.
        dropout: Share of units dropped in training, 0 to below 1.
        positions: ``"learned"``, or ``"rotary"`` in every attention.
        lora_rank: With 1 or more only low-rank additions to the linear layers of the transformer
            are learned, and all that the network has without them stays as it is; see ``lora``.
        lora_alpha: Their weight is ``lora_alpha / lora_rank``.

    Returns:
        The layers ``stem``, ``layer0`` to ``layer{depth-1}``, ``head``.

    Raises:
        RecipeError: An option is out of range, or samples are no rows of tokens.
    """
    num_positions = token_shape("gpt", input_shape)
    check_counts(width=width, depth=depth, heads=heads)
    hidden = hidden_width(width, mlp_ratio)
    check_heads(width, heads)
    check_dropout(dropout)
    _check_lora(lora_rank, lora_alpha)
    rotary = positions == "rotary"
    if rotary and width // heads % 2:
        raise RecipeError(
            f"model.positions = 'rotary' turns pairs: model.width / model.heads must be even, "
            f"found {width // heads}."
        )

    linear, gain = Linears(lora_rank, lora_alpha), (2 * depth) ** -0.5

    def layer() -> CausalLayer:
        rotation = Rotation(num_positions, width // heads) if rotary else nn.Identity()
        attention = CausalAttention(width, heads, rotation, linear, gain)
        return CausalLayer(attention, width, hidden, linear, gain, dropout)

    stem = TokenEmbedding(num_classes, num_positions, width, dropout, learned=not rotary)
    rows = tuple(Layer(f"layer{index}", layer()) for index in range(depth))
    head = Layer("head", Readout(width, num_classes))
    network = Network((Layer("stem", stem), *rows, head), num_stem=1, num_head=1)
    return frozen_but_lora(network) if lora_rank else network


def _check_lora(rank: int, alpha: float) -> None:
    if rank < 0:
        raise RecipeError(f"model.lora_rank must be at least 0, found {rank}.")
    if not 0 < alpha < float("inf"):
        raise RecipeError(f"model.lora_alpha must be above 0 and finite, found {alpha}.")
