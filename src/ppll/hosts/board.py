"""What the processes of several hosts know of each other while a run goes on.

Every process puts its status on a board, once a second: the store of torchrun's agents. The first
two processes of every host look whether one has gone silent or stands still; two, because the one
that does may be the first. Whoever finds out first why the run has to end writes the verdict, all
leave by it, and each host's first process that is there prints it.

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from ppll.errors import ChannelClosed, Interrupted, UsageError
from ppll.hosts.roster import Roster
from ppll.launching.failure import Failure
from ppll.launching.launch import Watcher
from ppll.launching.stall import find_stall, stall_cause
from ppll.mesh import Mesh
from ppll.status import Activity, Monitor, StatusPage
from ppll.world import World

__all__ = ["Board"]

_TURN_S: Final = 1.0
_AGENT_TURN_S: Final = 0.5
_AFTERMATH_S: Final = 2.5
"""How long one whose neighbour is gone waits for the reason, before it looks who is silent."""
_LONG_AFTERMATH_S: Final = 8.0
"""The same on a machine that is so busy that several are."""
_AGAIN_S: Final = 3.0
"""A signal that comes again so soon is the same: a terminal and the agent both pass it on."""
_LAST_TURN_S: Final = 5.0
"""How long a thread may take to come back from a store that does not answer any more."""
_VERDICT, _END = "verdict", "end"


class Board:
    """A process's place on the board.

    Args:
        world: All processes.
        mesh: What they are.
        timeout_s: How long one may be silent or stand still.
    """

    def __init__(self, world: World, mesh: Mesh, timeout_s: float) -> None:
        self.page = StatusPage()
        self.monitor = Monitor(self.page)
        self.ends_early = threading.Event()
        self.watch: Watcher | None = None
        self._world = world
        self._mesh = mesh
        self._timeout_s = timeout_s
        self._store = world.store.clone()
        self._roster = Roster(world.rank, mesh, world.host_name)
        self._turned_s = time.monotonic()
        self._signalled_s: float | None = None
        self._closed = threading.Event()
        self._leaves = threading.Lock()
        self.leftovers: list[Path] = []
        """Folders that are removed when the process has to leave."""
        self._keeper = threading.Thread(target=self._keep, name="board", daemon=True)
        self._keeper.start()
        threading.Thread(target=self._watch_agent, name="board", daemon=True).start()

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
            status, now_s = self.page.read(), time.monotonic()
            place = self._mesh.place(self._world.rank)
            failure = Failure.of(error, self._world.rank, status, now_s, place)
            self._leave_by(self._judge(1, failure.message()))

    @contextmanager
    def hearing_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run with a checkpoint; one some seconds later, at once."""
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
        """Take part no more: the run is over.

        A thread that is inside torch's store when the interpreter ends would abort the process.
        """
        self._closed.set()
        self._keeper.join(_LAST_TURN_S)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        now_s = time.monotonic()
        if self._signalled_s is None:
            self._signalled_s = now_s  # The board's thread tells the others.
            self.ends_early.set()
        elif now_s > self._signalled_s + _AGAIN_S:
            self._leave(130)

    def _judge(self, code: int, message: str, died: int | None = None) -> dict[str, Any]:
        """Write the verdict, unless there is one; the one that holds."""
        verdict: dict[str, Any] = {"code": code, "message": message, "died": died}
        with suppress(RuntimeError):  # The store may be gone; then this one holds here.
            found = self._world.store.clone().compare_set(_VERDICT, "", json.dumps(verdict))
            verdict = json.loads(found)
        return verdict

    def _reason_of_aftermath(self) -> dict[str, Any]:
        """Why a neighbour is gone: what it says itself, or that it says nothing any more."""
        begin_s = time.monotonic()
        try:
            return self._said_meanwhile(begin_s) or self._unsaid(begin_s)
        except RuntimeError as error:
            return _without_store(f": {error!s:.200}")

    def _said_meanwhile(self, begin_s: float) -> dict[str, Any] | None:
        """The verdict, if somebody writes one while the silent are told from the busy."""
        store, now_s = self._world.store.clone(), begin_s
        self._roster.look(store, begin_s)
        while now_s < begin_s + _LONG_AFTERMATH_S:
            if store.check([_VERDICT]):
                found: dict[str, Any] = json.loads(store.get(_VERDICT))
                return found
            time.sleep(0.05)
            now_s = time.monotonic()
            self._roster.look(store, now_s)
            if now_s > begin_s + _AFTERMATH_S and len(self._roster.silent_since(begin_s)) == 1:
                break
        return None

    def _unsaid(self, begin_s: float) -> dict[str, Any]:
        silent = self._roster.silent_since(begin_s)
        if not silent:
            return self._judge(1, "the channel to another process is closed, but all are there.")
        message = self._roster.about(silent[0], "the process died", time.monotonic())
        return self._judge(1, message, died=silent[0])

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
        sys.stdout.flush()
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
            except RuntimeError as error:  # as torch's stores raise
                self._lose_store(error)
            if self.watch is not None and (statuses := self._roster.statuses()):
                with self.ending_together():
                    self.watch(statuses)
            self._turned_s = time.monotonic()
            self._closed.wait(_TURN_S)

    def _turn(self) -> None:
        self._roster.show(self._store, self.page.read())
        if self._signalled_s is not None:
            self._store.set(_END, "1")
        if self._store.check([_END]):
            self.ends_early.set()
        if self._store.check([_VERDICT]):
            self._leave_by(json.loads(self._store.get(_VERDICT)))
        if self._world.local_rank < 2:
            now_s = time.monotonic()
            self._roster.look(self._store, now_s)
            self._find_silence(now_s)

    def _find_silence(self, now_s: float) -> None:
        """End the run for a process that is silent or stands still."""
        statuses = self._roster.statuses()
        if not statuses:
            return
        rank, silence_s = self._roster.most_silent(now_s)
        if silence_s > self._timeout_s:
            cause = f"no sign of life for {silence_s:.0f} s (runtime.stall_timeout_s)"
            self._leave_by(self._judge(1, self._roster.about(rank, cause, now_s), died=rank))
        through = {r for r, s in enumerate(statuses) if s.activity is Activity.FINISH}
        stalled = find_stall(statuses, self._mesh, now_s, self._timeout_s, through=through)
        if stalled is not None:
            cause = stall_cause(self._timeout_s)
            self._leave_by(self._judge(1, self._roster.about(stalled, cause, now_s)))

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
        self._leave_by(_without_store(reason))


def _without_store(reason: str) -> dict[str, Any]:
    """The verdict of a process that can ask nobody any more."""
    message = (
        f"torchrun's store cannot be reached{reason}\nThe host of the rendezvous or the link to it "
        f"is gone, or its processes have ended: what torchrun printed there says more."
    )
    return {"code": 1, "message": message}
