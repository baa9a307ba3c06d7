"""What every method of local learning gives a block: an auxiliary network and a local loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ppll.message import Message

__all__ = ["BlockSite", "LocalLoss", "Method", "Paper", "TaskLoss"]

TaskLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits (N, classes) and targets (N) to a scalar."""


@dataclass(frozen=True)
class Paper:
    """Where a method comes from."""

    title: str
    year: int
    source: str


@dataclass(frozen=True)
class BlockSite:
    """Where a block stands in its network; all that an auxiliary network may depend on.

    Attributes:
        block_index: Position of the block, from 0.
        num_blocks: Blocks of the network.
        input_shape: One sample's shape at the network's input, without N.
        feature_shape: One sample's shape at the block's output, without N.
        num_classes: Classes to tell apart.
    """

    block_index: int
    num_blocks: int
    input_shape: tuple[int, ...]
    feature_shape: tuple[int, ...]
    num_classes: int

    @property
    def is_last(self) -> bool:
        """Whether the block ends in the network's own output."""
        return self.block_index == self.num_blocks - 1


@dataclass(frozen=True)
class LocalLoss:
    """What a block learns from.

    Attributes:
        value: Scalar; its gradient is the block's only one.
        logits: The exit's prediction (N, classes).
    """

    value: Tensor
    logits: Tensor


class Method(ABC):
    """One way for a block to learn without hearing from the blocks behind it.

    A method holds options and no state: what is learned or counted lies in the auxiliary network,
    so that it is saved, moved and hashed with the block.
    """

    paper: ClassVar[Paper]
    end_to_end: ClassVar[bool] = False
    """Whether the whole network is one block, however the recipe would cut it."""
    fields: ClassVar[tuple[str, ...]] = ()
    """Fields of a message that it needs besides features and targets."""

    @abstractmethod
    def build_auxiliary(self, site: BlockSite) -> nn.Module:
        """The auxiliary network of a block that is not the last, with its first values open.

        Raises:
            ModelError: The method cannot work on such features.
        """

    def local_loss(
        self, auxiliary: nn.Module | None, features: Tensor, message: Message, task_loss: TaskLoss
    ) -> LocalLoss:
        """The loss that a block minimises.

        Args:
            auxiliary: What ``build_auxiliary`` made, or none in the last block, whose features
                are the network's logits.
            features: The block's output (N, ...), with its gradient history.
            message: What the block received: its input features, the targets, the fields.
            task_loss: The recipe's loss on logits and targets.
        """
        logits = self.exit(auxiliary, features)
        return LocalLoss(task_loss(logits, message.targets), logits)

    def exit(self, auxiliary: nn.Module | None, features: Tensor) -> Tensor:
        """The block's own prediction (N, classes) from its features (N, ...)."""
        if auxiliary is None:
            return features
        logits: Tensor = auxiliary(features)
        return logits
