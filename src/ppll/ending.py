"""After which batch a run ends that somebody has interrupted or stopped (no torch).

Loaders make batches ahead of time, each by itself, and all replicas have to stop after the same
one. So the first replica names a batch that no other loader can have reached; the name goes with
what replicas add up, and comes to all with the batch that is learned next.
"""

from __future__ import annotations

from collections.abc import Callable

from ppll.interrupts import Wish
from ppll.mesh import Mesh

__all__ = ["Ending"]


class Ending:
    """One loader's view of it; may be used by two threads.

    Args:
        wish: Asked after every batch, in the first replica.
        num_ahead: Batches that go on after it says to end.
    """

    def __init__(self, wish: Callable[[], int] = lambda: Wish.GO_ON, num_ahead: int = 0) -> None:
        self._wish = wish
        self._num_ahead = num_ahead
        self.word = 0
        """The run's last batch, below 0 where a test follows it; 0 while nobody has named one."""

    @classmethod
    def of_rank(cls, mesh: Mesh, rank: int, wish: Callable[[], int], capacity: int) -> Ending:
        """That of a rank whose loader is ``capacity`` messages ahead.

        A loader that is asked after batch q gave its stage batch q - capacity, so all before that
        one were added up. What the first loader names after batch p goes with batch p + 1 at the
        latest.
        """
        if mesh.replica(rank):
            return cls()
        return cls(wish, capacity + 2 if mesh.replicas[0] > 1 else 0)

    def after(self, step: int) -> bool:
        """Whether the run ends after batch ``step``."""
        if not self.word and (wish := self._wish()):
            last = step + self._num_ahead
            self.word = -last if wish == Wish.TEST else last
        return 0 < abs(self.word) <= step

    @property
    def is_tested(self) -> bool:
        """Whether a test follows the run's last batch."""
        return self.word < 0

    def hear(self, word: int) -> None:
        """Take over what the first replica has said, if it has said anything."""
        self.word = self.word or word
