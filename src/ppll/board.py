"""What the processes of several hosts know of each other while a run goes on.

Every process puts its status on a board, once a second: the store of torchrun's agents. The first
process of every host looks whether one has gone silent or stands still. Whoever finds out first why
the run has to end writes the verdict, all leave by it, and each host's first process prints it.

A process that torchrun started has no launcher of ours. So here it also watches the agent, and
leaves when that is gone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from ppll.errors import ChannelClosed, Interrupted, UsageError
from ppll.failure import Failure
from ppll.launch import Watcher
from ppll.stall import describe, find_stall, stall_cause
from ppll.status import Activity, Monitor, Status, StatusPage
from ppll.world import World

__all__ = ["Board"]

_TURN_S: Final = 1.0
_AGENT_TURN_S: Final = 0.5
_AFTERMATH_S: Final = 2.5
"""How long one whose neighbour is gone waits for the reason, before it looks who is silent."""
_LONG_AFTERMATH_S: Final = 8.0
"""The same on a machine that is so busy that several are."""
_VERDICT, _END = "verdict", "end"


@dataclass
class _Seen:
    """What was last read of a process."""

    status: Status
    host: str
    beat: int = -1
    changed_s: float = 0.0


class Board:
    """A process's place on the board.

    Args:
        world: All processes.
        timeout_s: How long one may be silent or stand still.
    """

    def __init__(self, world: World, timeout_s: float) -> None:
        self.page = StatusPage()
        self.monitor = Monitor(self.page)
        self.ends_early = threading.Event()
        self.watch: Watcher | None = None
        self._world = world
        self._timeout_s = timeout_s
        self._store = world.store.clone()
        self._seen: dict[int, _Seen] = {}
        self._beat = 0
        self._turned_s = time.monotonic()
        self._signals: set[int] = set()
        self._closed = threading.Event()
        self._leaves = threading.Lock()
        self.leftovers: list[Path] = []
        """Folders that are removed when the process has to leave."""
        for turn in (self._keep, self._watch_agent):
            threading.Thread(target=turn, name="board", daemon=True).start()

    # --- ending ----------------------------------------------------------------------------

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """Let all processes leave for what went wrong first, whichever it happens to.

        Raises:
            Interrupted: As it came: it comes to every process.
        """
        try:
            yield
        except Interrupted:
            raise
        except UsageError as error:
            self._leave_by(self._judge(2, f"{type(error).__name__}: {error}"))
        except ChannelClosed:
            self._leave_by(self._reason_of_aftermath())
        except BaseException as error:
            failure = Failure.of(error, self._world.rank, self.page.read(), time.monotonic())
            self._leave_by(self._judge(1, failure.message()))

    @contextmanager
    def hearing_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run with a checkpoint; one that comes again ends it at once.

        The agent passes on what it gets, so each of the two may come once.
        """
        numbers = (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def close(self) -> None:
        """Take part no more: the run is over."""
        self._closed.set()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number in self._signals:
            self._leave(130)
        self._signals.add(number)  # The board's thread tells the others.
        self.ends_early.set()

    def _judge(self, code: int, message: str, died: int | None = None) -> dict[str, Any]:
        """Write the verdict, unless there is one; the one that holds."""
        verdict = json.dumps({"code": code, "message": message, "died": died})
        found = self._world.store.clone().compare_set(_VERDICT, "", verdict)
        holding: dict[str, Any] = json.loads(found)
        return holding

    def _reason_of_aftermath(self) -> dict[str, Any]:
        """Why a neighbour is gone: what it says itself, or that it says nothing any more."""
        store = self._world.store.clone()
        begin_s = now_s = time.monotonic()
        self._look(begin_s)
        while now_s < begin_s + _LONG_AFTERMATH_S:
            if store.check([_VERDICT]):
                found: dict[str, Any] = json.loads(store.get(_VERDICT))
                return found
            time.sleep(0.05)
            now_s = time.monotonic()
            self._look(now_s)
            if now_s > begin_s + _AFTERMATH_S and len(self._silent_since(begin_s)) == 1:
                break
        silent = self._silent_since(begin_s)
        if not silent:
            return self._judge(1, "the channel to another process is closed, but all are there.")
        message = self._about(silent[0], "the process died", now_s)
        return self._judge(1, message, died=silent[0])

    def _silent_since(self, begin_s: float) -> list[int]:
        """Other processes whose entries have not changed since then, the oldest first."""
        others = {r: s.changed_s for r, s in self._seen.items() if r != self._world.rank}
        return sorted((r for r in others if others[r] <= begin_s), key=others.__getitem__)

    def _leave_by(self, verdict: dict[str, Any]) -> NoReturn:
        if not self._leaves.acquire(blocking=False):
            threading.Event().wait()  # Another thread is about to end the process.
        if self._is_read(verdict.get("died")):
            sys.stderr.write(verdict["message"] + "\n")
            sys.stderr.flush()
        if self._world.host_index == 0:
            # The store is this host's, and gone with its agent: the others are to read it first.
            time.sleep(_TURN_S + _AGENT_TURN_S)
        self._leave(verdict["code"])

    def _is_read(self, died: int | None) -> bool:
        """Whether people read what this process prints: the first of its host that is there."""
        first = self._world.rank - self._world.local_rank
        return self._world.local_rank == (1 if died == first else 0)

    def _leave(self, code: int) -> NoReturn:
        self.remove_leftovers()
        os._exit(code)

    def remove_leftovers(self) -> None:
        """Remove the folders that this process made."""
        for folder in self.leftovers:
            shutil.rmtree(folder, ignore_errors=True)

    # --- the threads -----------------------------------------------------------------------

    def _keep(self) -> None:
        while not self._closed.is_set():
            try:
                self._turn()
            except Exception as error:  # torch's store raises what it likes
                self._lose_store(error)
            self._turned_s = time.monotonic()
            self._closed.wait(_TURN_S)

    def _turn(self) -> None:
        self._show()
        if self._signals:
            self._store.set(_END, "1")
        if self._store.check([_END]):
            self.ends_early.set()
        if self._store.check([_VERDICT]):
            self._leave_by(json.loads(self._store.get(_VERDICT)))
        now_s = time.monotonic()
        self._look(now_s)
        self._find_silence(now_s)

    def _show(self) -> None:
        status, now_s = self.page.read(), time.monotonic()
        self._beat += 1
        entry = {
            "beat": self._beat,
            "host": self._world.host_name,
            "clock_s": now_s,  # clocks of hosts differ
            "status": [int(status.activity), *status[1:]],
        }
        self._store.set(f"page/{self._world.rank}", json.dumps(entry))

    def _look(self, now_s: float) -> None:
        keys = [f"page/{rank}" for rank in range(self._world.size)]
        if not self._store.check(keys):
            return
        for rank, content in enumerate(self._store.multi_get(keys)):
            entry = json.loads(content)
            status = _by_this_clock(entry["status"], now_s - entry["clock_s"])
            seen = self._seen.setdefault(rank, _Seen(status, entry["host"]))
            if entry["beat"] != seen.beat:
                seen.status, seen.beat, seen.changed_s = status, entry["beat"], now_s
        if self.watch is not None:
            self.watch(self._statuses())

    def _statuses(self) -> Sequence[Status]:
        return [self._seen[rank].status for rank in range(self._world.size)]

    def _find_silence(self, now_s: float) -> None:
        """End the run for a process that is silent or stands still."""
        if not self._seen:
            return
        rank = min(self._seen, key=lambda r: self._seen[r].changed_s)
        silence_s = now_s - self._seen[rank].changed_s
        if silence_s > self._timeout_s:
            cause = f"no sign of life for {silence_s:.0f} s (runtime.stall_timeout_s)"
            self._leave_by(self._judge(1, self._about(rank, cause, now_s), died=rank))
        statuses = self._statuses()
        through = {r for r, s in enumerate(statuses) if s.activity is Activity.FINISH}
        stalled = find_stall(statuses, now_s, self._timeout_s, through=through)
        if stalled is not None:
            self._leave_by(
                self._judge(1, self._about(stalled, stall_cause(self._timeout_s), now_s))
            )

    def _about(self, rank: int, cause: str, now_s: float) -> str:
        seen = self._seen[rank]
        detail = describe(self._statuses(), now_s)
        cause = f"{cause}, on host {seen.host}"
        return Failure.silent(rank, seen.status, now_s, cause, detail).message()

    def _watch_agent(self) -> None:
        """Leave when torchrun's agent is gone, or its store cannot be reached any more."""
        agent = os.getppid()
        while not self._closed.wait(_AGENT_TURN_S):
            if os.getppid() != agent:
                self._leave(1)
            if time.monotonic() - self._turned_s > self._timeout_s + _AFTERMATH_S:
                self._lose_store(None)

    def _lose_store(self, error: Exception | None) -> None:
        if self._closed.is_set():
            return
        reason = f": {error!s:.200}" if error else f" for {self._timeout_s:g} s"
        self._leave_by({"code": 1, "message": f"torchrun's store cannot be reached{reason}"})


def _by_this_clock(fields: list[Any], ahead_s: float) -> Status:
    """Another host's status, by the clock of this one, which is so many seconds ahead."""
    activity, *rest = fields
    status = Status(Activity(activity), *rest)
    started_s = status.started_s and status.started_s + ahead_s
    return status._replace(since=status.since + ahead_s, started_s=started_s)
