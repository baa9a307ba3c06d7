"""Where a block stands in its network: all that what a method adds to it may depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ppll.data_facts import DataFacts
from ppll.models.network import Layer, Network

__all__ = ["BlockSite", "sites_of"]


@dataclass(frozen=True)
class BlockSite:
    """Where a block stands in its network; all that an auxiliary network may depend on.

    Attributes:
        block_index: Position of the block, from 0.
        num_blocks: Blocks of the network.
        input_shape: One sample's shape at the network's input, without N.
        feature_shape: One sample's shape at the block's output, without N.
        num_classes: Classes to tell apart; or how many values of a sample are to be predicted (D).
        block_input_shape: One sample's shape at the block's input.
        layers_behind: The network's layers behind the block, to be looked at and copied only.
        shapes_behind: One sample's shape at the output of each of them.
        previous_input_shape: One sample's shape at the input of the block before; empty in the
            first block.
        num_tokens: Different tokens there are, where a sample is a row of tokens (T).
        predicts_tokens: Whether each token of a sample has a target of its own, the token that
            follows it, which nothing may predict from later ones.
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
    num_tokens: int | None = None
    predicts_tokens: bool = False

    @property
    def output_shape(self) -> tuple[int, ...]:
        """One sample's logits: (classes), or (T, classes) where each token has a target; or values
        (D)."""
        return (*(self.input_shape if self.predicts_tokens else ()), self.num_classes)

    @property
    def holds_tokens(self) -> bool:
        """Whether a sample is a row of tokens (T), int64 at the network's input."""
        return self.num_tokens is not None

    @property
    def reads_tokens(self) -> bool:
        """Whether the block itself reads these tokens."""
        return self.holds_tokens and self.block_index == 0

    @property
    def is_last(self) -> bool:
        """Whether the block ends in the network's own output."""
        return self.block_index == self.num_blocks - 1


def sites_of(
    network: Network,
    ranges: Sequence[range],
    shapes: Sequence[tuple[int, ...]],
    facts: DataFacts,
) -> tuple[BlockSite, ...]:
    """Where every block stands in a network.

    Args:
        network: All its layers.
        ranges: The layers of every block.
        shapes: One sample's shape at the output of every layer.
        facts: What the network reads, and is to tell apart.
    """
    inputs = [shapes[layers[0] - 1] if layers[0] else facts.input_shape for layers in ranges]
    return tuple(
        BlockSite(
            index,
            len(ranges),
            facts.input_shape,
            shapes[layers[-1]],
            facts.num_classes,
            inputs[index],
            network.layers[layers.stop :],
            tuple(shapes[layers.stop :]),
            inputs[index - 1] if index else (),
            facts.num_tokens,
            facts.predicts_tokens,
        )
        for index, layers in enumerate(ranges)
    )
