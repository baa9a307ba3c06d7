"""What a user's program is told of a run while it goes on.

Callbacks run in the process that called ``fit``, in a thread of their own, never in a rank: what
they do neither slows down training nor changes it, and one that fails costs no run. The thread
follows the files that the ranks write their metrics to, so it is told the same on any placement.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from ppll.config import Recipe
from ppll.errors import UsageError
from ppll.metrics import is_before
from ppll.result import Result
from ppll.run_folder import RunFolder

__all__ = ["Callback", "CallbackLike", "Followed", "check_callbacks", "followed"]

_log = logging.getLogger(__name__)

_POLL_S: Final = 0.5
_PATIENCE_S: Final = 30.0
"""How long the end of a run waits for callbacks."""

Row = Mapping[str, Any]


class Callback:
    """Base of callbacks; what is not overridden does nothing."""

    def on_start(self, folder: Path, recipe: Recipe) -> None:
        """The run begins, or goes on.

        Args:
            folder: The run folder.
            recipe: The whole recipe.
        """

    def on_metrics(self, row: Row) -> None:
        """A block's numbers have been written.

        Args:
            row: ``kind`` ("train", "validation" or "test"), ``step``, ``epoch``, ``block``,
                ``samples``, ``loss`` and ``accuracy``; none where a block makes no prediction.
        """

    def on_end(self, result: Result | None) -> None:
        """The run is over.

        Args:
            result: What it came to; none where it failed. Where it was interrupted, there is no
                ``test_accuracy``.
        """


@runtime_checkable
class _Rows(Protocol):
    def __call__(self, row: Row) -> object: ...


CallbackLike = Callback | Callable[[Row], object]
"""A callback, or a function that is called with every row of metrics."""


def check_callbacks(callbacks: Sequence[object]) -> list[Callback]:
    """Callbacks, functions wrapped into some.

    Raises:
        UsageError: Something is neither, or they are no list.
    """
    if not isinstance(callbacks, Sequence):
        raise UsageError(f"callbacks is {callbacks!r}: give a list of them.")
    return [_as_callback(callback) for callback in callbacks]


def _as_callback(given: object) -> Callback:
    if isinstance(given, Callback):
        return given
    if isinstance(given, type) or not isinstance(given, _Rows):
        raise UsageError(
            f"callbacks holds {given!r}: give a ppll.Callback object, or a function that takes a "
            f"row of metrics."
        )
    return _Function(given)


class _Function(Callback):
    def __init__(self, function: Callable[[Row], object]) -> None:
        self._function = function

    def on_metrics(self, row: Row) -> None:
        self._function(row)


class Followed:
    """A run that is being followed; whoever carries it out puts its result here."""

    result: Result | None = None


@contextmanager
def followed(
    callbacks: Sequence[Callback], folder: RunFolder, recipe: Recipe
) -> Iterator[Followed]:
    """Tell callbacks of a run that is carried out meanwhile."""
    run = Followed()
    if not callbacks:
        yield run
        return
    ended = threading.Event()
    follower = _Follower(callbacks, folder, recipe)
    thread = threading.Thread(
        target=follower.follow, args=(run, ended), name="ppll-callbacks", daemon=True
    )
    thread.start()
    try:
        yield run
    finally:
        ended.set()
        thread.join(_PATIENCE_S)
        if thread.is_alive():
            _log.warning("callbacks took more than %g s to end: left behind.", _PATIENCE_S)


class _Follower:
    """Reads what ranks append to their files, and tells each row once, also after restarts."""

    def __init__(self, callbacks: Sequence[Callback], folder: RunFolder, recipe: Recipe) -> None:
        self._callbacks = list(callbacks)
        self._folder = folder
        self._recipe = recipe
        self._tails: dict[Path, _Tail] = {}
        self._told: set[tuple[Any, ...]] = set()
        self._num_starts = len(folder.read_start_steps())
        self._start_step: int | None = None

    def follow(self, run: Followed, ended: threading.Event) -> None:
        """Tell what comes until the run has ended, then what is left."""
        self._tell("on_start", self._folder.path, self._recipe)
        while not ended.wait(_POLL_S):
            self._poll()
        self._poll()
        self._tell("on_end", run.result)

    def _poll(self) -> None:
        if self._start_step is None:
            starts = self._folder.read_start_steps()
            if len(starts) == self._num_starts:
                return  # It has not started yet.
            self._start_step = starts[self._num_starts]
        for path in sorted(self._folder.metric_parts.glob("*.jsonl")):
            for row in self._tails.setdefault(path, _Tail(path)).read():
                self._take(row, self._start_step)

    def _take(self, row: Row, start_step: int) -> None:
        key = (row.get("kind"), row.get("step"), row.get("block"))
        if key not in self._told and not is_before(row, start_step):
            self._told.add(key)
            self._tell("on_metrics", row)

    def _tell(self, name: str, *args: Any) -> None:
        for callback in list(self._callbacks):
            try:
                getattr(callback, name)(*args)
            except BaseException:  # No Ctrl-C reaches this thread; what comes here is its own.
                self._callbacks.remove(callback)
                _log.exception("%s.%s failed; it is told no more.", type(callback).__name__, name)


class _Tail:
    """Lines that are appended to a file; one that was replaced is read from its start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = -1
        self._offset = 0

    def read(self) -> Iterator[Row]:
        """The whole lines that are new."""
        with self._path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_ino != self._inode or found.st_size < self._offset:
                self._inode, self._offset = found.st_ino, 0
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                if (row := _row(line)) is not None:
                    yield row


def _row(line: bytes) -> Row | None:
    """None of a line that a process left that was killed while it wrote."""
    with suppress(ValueError):
        row = json.loads(line)
        return row if isinstance(row, dict) else None
    return None
