"""What the processes of several hosts know of each other while a run goes on.

Every process puts its status on a board, once a second: the store of torchrun's agents. The first
two processes of every host look whether one has gone silent or stands still; two, because the one
that does may be the first. The others look only where these are gone as well. Whoever finds out
first why the run has to end writes the verdict, all leave by it, and one of each host prints it:
the first, if it comes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final, NoReturn

from ppll.errors import ChannelClosed, ChannelTimeout, Interrupted, UsageError
from ppll.hosts.departure import Departure
from ppll.hosts.roster import Roster
from ppll.interrupts import Wish
from ppll.launching.failure import Failure
from ppll.launching.launch import Watcher
from ppll.launching.stall import find_stall, stall_cause
from ppll.mesh import Mesh
from ppll.status import Activity, Monitor, StatusPage
from ppll.torchrun import store_address
from ppll.world import World

__all__ = ["Board"]

_TURN_S: Final = 1.0
_HEARD_S: Final = 1.5
"""How long it may take until another process that is there has heard the verdict."""
_NUM_WATCHERS: Final = 2
"""Processes of a host that look at everybody's status."""
_AFTERMATH_S: Final = 2.5
"""How long one whose neighbour is gone waits for the reason, before it looks who is silent."""
_LONG_AFTERMATH_S: Final = 8.0
"""The same on a machine that is so busy that several are."""
_AGAIN_S: Final = 3.0
"""A signal that comes again so soon is the same: a terminal and the agent both pass it on."""
_LOOK_S: Final = 0.25
_LEAVING_S: Final = 30.0
"""How long a process that has failed may take for its metrics and callbacks before it is gone."""
_LAST_TURN_S: Final = 5.0
"""How long a thread may take to come back from a store that does not answer any more."""
_VERDICT, _END = "verdict", "end"


class Board:
    """A process's place on the board.

    Args:
        world: All processes.
        mesh: What they are.
        timeout_s: How long one may be silent or stand still.
        departure: How this one leaves.
    """

    def __init__(self, world: World, mesh: Mesh, timeout_s: float, departure: Departure) -> None:
        self.page = StatusPage()
        self.monitor = Monitor(self.page)
        self.wish = Wish.GO_ON
        self.watch: Watcher | None = None
        self.after_failure = ""
        """What to say below a failure; nothing before a run begins, and where torchrun goes on."""
        self.begun_s = math.inf
        """When all began to train, by this process's clock: what they took before does not count,
        since the first one may read data for long."""
        self._world = world
        self._mesh = mesh
        self._timeout_s = timeout_s
        self._departure = departure
        self._store = world.store.clone()
        self._roster = Roster(world.rank, mesh, world.host_name)
        self._looks = world.local_rank < _NUM_WATCHERS
        self._turned_s = time.monotonic()
        self._signalled_s: float | None = None
        self._told_s = -math.inf
        """When something went wrong here, so that this process leaves by itself."""
        self._closed = threading.Event()
        self._leaves = threading.Lock()
        self._keeper = threading.Thread(target=self._keep, name="board", daemon=True)
        self._keeper.start()
        threading.Thread(target=self._watch_store, name="board", daemon=True).start()

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
        except ChannelClosed as error:
            self._leave_by(self._reason_of_aftermath(error))
        except BaseException as error:
            self._leave_by(self._judge_by(error))

    def tell(self, error: BaseException) -> None:
        """Let the others know what went wrong here, before this process leaves for it."""
        if not isinstance(error, ChannelClosed):
            self._told_s = time.monotonic()  # The board's thread may see the verdict at once.
            self._judge_by(error)

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
            self._signalled_s = now_s
            self.wish = Wish.SAVE  # The board's thread tells the others.
        elif now_s > self._signalled_s + _AGAIN_S:
            self._departure.leave(130)

    def stop(self) -> None:
        """Let the run of all be tested and ended, unless it ends already."""
        self.wish = self.wish or Wish.TEST

    def _judge_by(self, error: BaseException) -> dict[str, Any]:
        if isinstance(error, UsageError):
            return self._judge(2, f"{type(error).__name__}: {error}")
        return self._judge(1, self._failure(error).message())

    def _failure(self, error: BaseException) -> Failure:
        rank, place = self._world.rank, self._mesh.place(self._world.rank)
        return Failure.of(error, rank, self.page.read(), time.monotonic(), place)

    def _judge(self, code: int, message: str) -> dict[str, Any]:
        """Write the verdict, unless there is one; the one that holds."""
        verdict = self._verdict(code, message)
        with suppress(RuntimeError):  # The store may be gone; then this one holds here.
            found = self._world.store.clone().compare_set(_VERDICT, "", json.dumps(verdict))
            verdict = json.loads(found)
        return verdict

    def _verdict(self, code: int, message: str) -> dict[str, Any]:
        """As it is written and printed."""
        if code == 1 and self.after_failure:
            message = f"{message}\n{self.after_failure}"
        return {"code": code, "message": message}

    def _reason_of_aftermath(self, closed: ChannelClosed) -> dict[str, Any]:
        """Why a neighbour is gone: what it says itself, or that it says nothing any more."""
        try:
            if not self._looks and (verdict := self._said_within(_LONG_AFTERMATH_S)):
                return verdict
            self._looks = True
            begin_s = time.monotonic()
            self._roster.look(self._world.store, begin_s)
            return self._said_meanwhile(begin_s) or self._unsaid(begin_s, closed)
        except RuntimeError as error:
            self._lose_store(error)

    def _said_meanwhile(self, begin_s: float) -> dict[str, Any] | None:
        """The verdict, if somebody writes one while the silent are told from the busy."""
        now_s = begin_s
        while now_s < begin_s + _LONG_AFTERMATH_S:
            if verdict := self._said_within(_LOOK_S):
                return verdict
            now_s = time.monotonic()  # The board's thread looks at everybody, as ever.
            if now_s > begin_s + _AFTERMATH_S and len(self._roster.silent_since(begin_s)) == 1:
                break
        return None

    def _said_within(self, timeout_s: float) -> dict[str, Any] | None:
        """The verdict, if there is one by then."""
        with suppress(ChannelTimeout):
            verdict: dict[str, Any] = self._world.read(_VERDICT, timeout_s)
            return verdict
        return None

    def _unsaid(self, begin_s: float, closed: ChannelClosed) -> dict[str, Any]:
        silent = self._roster.silent_since(begin_s)
        if not silent:
            failure = self._failure(closed)
            cause = f"{failure.cause} All processes are there: the connection has broken."
            return self._judge(1, dataclasses.replace(failure, cause=cause).message())
        return self._judge(1, self._roster.about(silent[0], "the process died", time.monotonic()))

    def _leave_by(self, verdict: dict[str, Any], *, alone: bool = False) -> NoReturn:
        """Leave, and say why; ``alone`` where no other process can be asked any more."""
        if not self._leaves.acquire(blocking=False):
            threading.Event().wait()  # Another thread is about to end the process.
        begin_s = time.monotonic()
        if self._world.speaks if alone else self._is_to_speak():
            sys.stderr.write(verdict["message"] + "\n")
            sys.stderr.flush()
        if self._world.host_index == 0 and self._world.size > self._world.local_size:
            # The store is this host's, and gone with its agent: the others are to read it first.
            time.sleep(max(0.0, begin_s + 2 * _HEARD_S - time.monotonic()))
        self._departure.leave(verdict["code"])

    def _is_to_speak(self) -> bool:
        """Whether people read what this process says: one of each host, the first if it comes."""
        if not self._world.speaks:
            time.sleep(_HEARD_S)
        with suppress(RuntimeError):  # The store may be gone.
            count: int = self._world.store.clone().add(f"said/{self._world.host_index}", 1)
            return count == 1
        return self._world.speaks

    # --- the threads -----------------------------------------------------------------------

    def _keep(self) -> None:
        while not self._closed.is_set():
            try:
                self._turn()
            except RuntimeError as error:  # as torch's stores raise
                if not self._closed.is_set():
                    self._lose_store(error)
            if self.watch is not None and (statuses := self._roster.statuses()):
                with self.ending_together():
                    self.watch(statuses)
            self._turned_s = time.monotonic()
            self._closed.wait(_TURN_S)

    def _turn(self) -> None:
        self._roster.show(self._store, self.page.read())
        if self.wish:
            self._store.compare_set(_END, "", str(int(self.wish)))
        if self._store.check([_END]):
            self.wish = Wish(int(self._store.get(_END)))
        now_s = time.monotonic()
        if self._store.check([_VERDICT]):
            if now_s > self._told_s + _LEAVING_S:
                self._leave_by(json.loads(self._store.get(_VERDICT)))
        elif self._looks:
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
            self._leave_by(self._judge(1, self._roster.about(rank, cause, now_s)))
        through = {r for r, s in enumerate(statuses) if s.activity is Activity.FINISH}
        stalled = find_stall(
            statuses, self._mesh, now_s, self._timeout_s, through=through, resumed_s=self.begun_s
        )
        if stalled is not None:
            cause = stall_cause(self._timeout_s)
            self._leave_by(self._judge(1, self._roster.about(stalled, cause, now_s)))

    def _watch_store(self) -> None:
        """Leave when the store has not answered for too long."""
        while not self._closed.wait(_TURN_S):
            if time.monotonic() - self._turned_s > self._timeout_s + _AFTERMATH_S:
                self._lose_store(None)

    def _lose_store(self, error: Exception | None) -> NoReturn:
        """Leave as one that can ask nobody any more."""
        reason = f": {error!s:.200}" if error else f" for {self._timeout_s:g} s"
        address = store_address()
        message = (
            f"torchrun's store at {address} cannot be reached{reason}\nThe host there, which is "
            f"that of rank 0, or the link to it is gone, or its processes have ended: what "
            f"torchrun printed there says more."
        )
        self._leave_by(self._verdict(1, message), alone=True)
