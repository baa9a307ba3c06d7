"""How fast a run goes, and how long it still takes (no torch)."""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["Pace"]

_WINDOW_S: Final = 10.0
_ENOUGH_S: Final = 1.0


class Pace:
    """Samples per second over the last seconds, and the time left at the pace so far.

    Args:
        num_steps: Of the whole run.
    """

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._marks: deque[tuple[float, int]] = deque()
        self._began: tuple[float, int] | None = None
        self._now: tuple[float, int] = (0.0, 0)

    def note(self, step: int, samples: int, now_s: float) -> None:
        """Take note of how far the run is; a restart begins anew."""
        if not samples:
            self._began = None
            self._marks.clear()
            return
        if self._marks and samples < self._marks[-1][1]:
            self._began = None
            self._marks.clear()
        self._began = self._began or (now_s, step)
        self._now = (now_s, step)
        self._marks.append((now_s, samples))
        while self._marks[-1][0] - self._marks[0][0] > _WINDOW_S:
            self._marks.popleft()

    @property
    def samples_per_second(self) -> float | None:
        """Over the last seconds; none before there is a second."""
        if not self._marks:
            return None
        (began_s, before), (now_s, after) = self._marks[0], self._marks[-1]
        elapsed_s = now_s - began_s
        return (after - before) / elapsed_s if elapsed_s >= _ENOUGH_S else None

    @property
    def left_s(self) -> float | None:
        """Seconds that the other steps take, evaluations included; none before that is known, and
        where no step is left: how long the last evaluation takes is not known."""
        if self._began is None:
            return None
        elapsed_s, done = self._now[0] - self._began[0], self._now[1] - self._began[1]
        if elapsed_s < _ENOUGH_S or done <= 0 or self._now[1] >= self._num_steps:
            return None
        return (self._num_steps - self._now[1]) * elapsed_s / done

    def words(self) -> list[str]:
        """Both, as far as they are known."""
        rate, left_s = self.samples_per_second, self.left_s
        words = [] if rate is None else [f"{rate:,.0f} samples/s"]
        if left_s is not None:
            minutes, seconds = divmod(round(left_s), 60)
            hours, minutes = divmod(minutes, 60)
            words.append(f"{hours}:{minutes:02d}:{seconds:02d} left")
        return words
