"""Where a block stands in its network: all that what a method adds to it may depend on."""

from __future__ import annotations

from dataclasses import dataclass, field

from ppll.models.network import Layer

__all__ = ["BlockSite"]


@dataclass(frozen=True)
class BlockSite:
    """Where a block stands in its network; all that an auxiliary network may depend on.

    Attributes:
        block_index: Position of the block, from 0.
        num_blocks: Blocks of the network.
        input_shape: One sample's shape at the network's input, without N.
        feature_shape: One sample's shape at the block's output, without N.
        num_classes: Classes to tell apart.
        block_input_shape: One sample's shape at the block's input.
        layers_behind: The network's layers behind the block, to be looked at and copied only.
        shapes_behind: One sample's shape at the output of each of them.
        previous_input_shape: One sample's shape at the input of the block before; empty in the
            first block.
        holds_tokens: Whether a sample is a row of tokens (T), each with a target of its own, which
            nothing may predict from later ones.
    """

    block_index: int
    num_blocks: int
    input_shape: tuple[int, ...]
    feature_shape: tuple[int, ...]
    num_classes: int
    block_input_shape: tuple[int, ...] = ()
    layers_behind: tuple[Layer, ...] = field(default=(), repr=False, compare=False)
    shapes_behind: tuple[tuple[int, ...], ...] = field(default=(), repr=False)
    previous_input_shape: tuple[int, ...] = ()
    holds_tokens: bool = False

    @property
    def output_shape(self) -> tuple[int, ...]:
        """One sample's logits: (classes), or (T, classes) of tokens."""
        return (*(self.input_shape if self.holds_tokens else ()), self.num_classes)

    @property
    def is_last(self) -> bool:
        """Whether the block ends in the network's own output."""
        return self.block_index == self.num_blocks - 1
