"""After which batch a run ends that somebody has interrupted (no torch).

Loaders make batches ahead of time, each by itself, and all replicas have to stop after the same
one. So the first replica names a batch that no other loader can have reached; the name goes with
what replicas add up, and comes to all with the batch that is learned next.
"""

from __future__ import annotations

from collections.abc import Callable

from ppll.mesh import Mesh

__all__ = ["Ending"]


class Ending:
    """One loader's view of it; may be used by two threads.

    Args:
        ends_early: Asked after every batch, in the first replica.
        num_ahead: Batches that go on after it says yes.
    """

    def __init__(self, ends_early: Callable[[], bool] = lambda: False, num_ahead: int = 0) -> None:
        self._ends_early = ends_early
        self._num_ahead = num_ahead
        self.step = 0
        """The run's last batch; 0 while nobody has named one."""

    @classmethod
    def of_rank(
        cls, mesh: Mesh, rank: int, ends_early: Callable[[], bool], capacity: int
    ) -> Ending:
        """That of a rank whose loader is ``capacity`` messages ahead.

        A loader that is asked after batch q gave its stage batch q - capacity, so all before that
        one were added up. What the first loader names after batch p goes with batch p + 1 at the
        latest.
        """
        if mesh.replica(rank):
            return cls()
        return cls(ends_early, capacity + 2 if mesh.replicas[0] > 1 else 0)

    def after(self, step: int) -> bool:
        """Whether the run ends after batch ``step``."""
        if not self.step and self._ends_early():
            self.step = step + self._num_ahead
        return 0 < self.step <= step

    def hear(self, step: int) -> None:
        """Take over the batch that the first replica has named, if it has."""
        self.step = self.step or step
