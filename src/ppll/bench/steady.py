"""How fast a run of PPLL is in steady state, from what its launcher sees of it."""

from __future__ import annotations

from collections.abc import Sequence

from ppll.errors import RecipeError
from ppll.status import Activity, Status

__all__ = ["Marks"]


class Marks:
    """Where the last stage was in its loop, and since when, as often as it was seen.

    The launcher looks twenty times a second, but a page says since when. A point of the loop is
    what the stage does, by which block, and for which message of a batch: after the last one the
    update follows, so they do not take alike.

    Args:
        first: Batches that it must have finished before it counts.
        last: Batches after which it counts no more.
        batch_size: Samples of each.
    """

    def __init__(self, first: int, last: int, batch_size: int) -> None:
        self._samples = range(first * batch_size, last * batch_size + 1)
        self._batch_size = batch_size
        self._seen: dict[tuple[Activity, int, int], dict[int, float]] = {}

    def __call__(self, statuses: Sequence[Status]) -> None:
        """Take note of what the launcher read."""
        status = statuses[-1]
        if status.samples in self._samples and not status.activity.waits:
            point = status.activity, status.block, status.samples % self._batch_size
            self._seen.setdefault(point, {}).setdefault(status.samples, status.since)

    def samples_per_second(self) -> float:
        """Between the two times farthest apart at which it was at the same point of its loop.

        Raises:
            RecipeError: There are no two.
        """
        marks = max(self._seen.values(), key=lambda point: max(point) - min(point), default={})
        if len(marks) < 2:
            raise RecipeError("too few batches were seen: time more of them, or larger ones.")
        first, last = min(marks), max(marks)
        return (last - first) / (marks[last] - marks[first])
