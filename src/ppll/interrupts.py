"""Who asks a run to end before its end.

Ctrl-C and SIGTERM do, the first for a checkpoint and an end, the second for an end at once; and the
program itself, for a checkpoint, a test and an end.
"""

from __future__ import annotations

import enum
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

from ppll.errors import Interrupted
from ppll.torchrun import speaks_for_its_host

__all__ = ["Interrupts", "Wish", "leaving_at_once"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_APART_S: Final = 0.5
"""Signals closer together are one: ``timeout``, Slurm and others tell a process and its group."""


class Wish(enum.IntEnum):
    """What a run is asked to do after the batch that it is at."""

    GO_ON = 0
    SAVE = 1
    """To save a checkpoint and end: it was interrupted."""
    TEST = 2
    """To save a checkpoint, test and end: ``Trainer.stop`` was called."""


@contextmanager
def leaving_at_once(leftover: Path | None = None) -> Iterator[None]:
    """Let the process end by a signal without a word of whatever it was doing: it has saved nothing
    yet, and most of its time goes into imports, some of which make another error of an exception.

    Args:
        leftover: A folder to remove.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        del number, frame
        if speaks_for_its_host():
            sys.stderr.write("Interrupted: stopped before anything began; nothing was saved.\n")
            sys.stderr.flush()
        if leftover is not None:
            shutil.rmtree(leftover, ignore_errors=True)
        os._exit(130)

    previous = {number: signal.signal(number, leave) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _AtOnce(BaseException):
    """A signal that is on its way out of ``Interrupts``.

    Much of what runs inside catches every ``Exception``, ours and libraries', and would take it for
    a damaged file or a network that cannot be built. Typer would end by a ``KeyboardInterrupt``
    without a word.
    """


class Interrupts:
    """Counts the signals that arrive while the context is open, instead of dying of them.

    Of those that arrive within half a second only the first counts.

    Args:
        most: How many signals are counted; one more ends the context where the main thread is, for
            a run in this process that could not be ended otherwise. 0 is for what saves nothing.
        stop: Is set, in any thread, where the run is to be tested and ended.

    Raises:
        Interrupted: On leaving the context, which more signals than ``most`` have ended.

    Outside the main thread, where Python cannot handle signals, it counts nothing.
    """

    def __init__(self, most: int | None = None, stop: threading.Event | None = None) -> None:
        self.count = 0
        self._stop = stop or threading.Event()
        self._counted_s = -math.inf
        self._most = most
        self._error: BaseException | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if isinstance(error, _AtOnce):
            saves = "; nothing more was saved" if self._most else ""
            raise Interrupted(f"stopped at once{saves}.") from None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._error is not None:
            raise self._error
        now_s = time.monotonic()
        if now_s < self._counted_s + _APART_S:
            return
        self._counted_s = now_s
        self.count += 1
        if self._most is not None and self.count > self._most:
            raise _AtOnce

    def abort(self, error: BaseException) -> None:
        """Raise ``error`` where the main thread is, from another thread.

        Outside the context, and where signals are not handled, nothing happens.
        """
        if self._previous:
            self._error = error
            signal.pthread_kill(_main_thread_id(), signal.SIGINT)

    @property
    def wish(self) -> Wish:
        """What the run is asked to do."""
        if self.count:
            return Wish.SAVE
        return Wish.TEST if self._stop.is_set() else Wish.GO_ON


def _main_thread_id() -> int:
    identity = threading.main_thread().ident
    assert identity is not None  # it runs
    return identity
