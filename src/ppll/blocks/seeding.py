"""What a block's random numbers are seeded with: a function of the recipe's seed, the block and the
message, whatever was drawn before and wherever the run began."""

from __future__ import annotations

from typing import Final

from ppll.message import Message
from ppll.randomness import fold

__all__ = ["EVALUATE", "FORWARD", "LEARN", "Seeds"]

FORWARD, LEARN, EVALUATE = range(3)

_BITS: Final = 0xFFFFFFFF
"""The CPU generator keeps no more of a seed."""


class Seeds:
    """Seeds of one block's random numbers.

    Args:
        seed: The recipe's.
        block_index: Which block.
    """

    def __init__(self, seed: int, block_index: int) -> None:
        self._key = fold(seed, "block", block_index)

    def join(self, replica: int) -> None:
        """Draw other numbers than the other replicas."""
        if replica:
            self._key = fold(self._key, "replica", replica)

    def of(self, phase: int, message: Message) -> int:
        """The seed of a forward, a learning step or an evaluation, 32 bits."""
        split = (message.split,) if phase == EVALUATE else ()
        part = (message.part,) if message.part else ()
        return fold(self._key, phase, message.step, *split, *part) & _BITS
