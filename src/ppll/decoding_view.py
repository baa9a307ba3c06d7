"""What a person sees while data is decoded: a bar, if it takes longer than a second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ppll.data.progress import seen_by

__all__ = ["decoding_shown"]

_EVERY_S = 0.1


@contextmanager
def decoding_shown(console: Console | None, *, delay_s: float = 1.0) -> Iterator[None]:
    """Show how far decoding is that goes on meanwhile, on a terminal only.

    Args:
        console: Where to; nowhere without.
        delay_s: What is done sooner is not shown, in seconds.
    """
    if console is None or not console.is_terminal:
        yield
        return
    bar = _Bar(console, delay_s)
    try:
        with seen_by(bar):
            yield
    finally:
        bar.stop()


class _Bar:
    """Follows one thing that is decoded after the other."""

    def __init__(self, console: Console, delay_s: float) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        name = TextColumn("decoding {task.description}", markup=False)
        self._progress = Progress(name, *columns, console=console, transient=True)
        self._task = self._progress.add_task("")
        self._delay_s = delay_s
        self._next_s: float | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self._next_s is None:
            self._next_s = now + self._delay_s
        if done == total:
            self.stop()
            return
        if now < self._next_s:
            return
        self._next_s = now + _EVERY_S
        self._progress.update(self._task, description=what, completed=done, total=total)
        self._progress.start()

    def stop(self) -> None:
        """Take the bar away; what is decoded next brings it back."""
        self._progress.stop()
