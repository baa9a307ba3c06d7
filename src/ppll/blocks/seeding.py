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
        self._evaluation: tuple[int, str] | None = None
        self._num_evaluated = 0

    def join(self, replica: int) -> None:
        """Draw other numbers than the other replicas."""
        if replica:
            self._key = fold(self._key, "replica", replica)

    def of(self, phase: int, message: Message) -> int:
        """The seed of a forward, a learning step or an evaluation, 32 bits."""
        place = self._place(message) if phase == EVALUATE else self._part(message)
        return fold(self._key, phase, message.step, *place) & _BITS

    def _part(self, message: Message) -> tuple[int, ...]:
        return (message.part,) if message.part else ()

    def _place(self, message: Message) -> tuple[str, int]:
        """The part of the data, and which message of its evaluation it is. Counted within the
        evaluation: its sequence number differs after a resume."""
        evaluation = (message.step, message.split)
        if evaluation != self._evaluation:
            self._evaluation, self._num_evaluated = evaluation, 0
        self._num_evaluated += 1
        return message.split, self._num_evaluated
