"""Start all ranks of one host, watch them, stop them, and name the first cause of a failure.

Starting and collecting is PyTorch's elastic agent's; what it lacks is here. A rank that fails says
so over its lifeline; its neighbours find their channels closed and leave without a word. Whatever
is left a second later is killed.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import selectors
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from ppll import fork_server
from ppll.channels import sockets
from ppll.errors import ChannelError, ChannelTimeout, Interrupted, ProtocolError, WorkerError
from ppll.interrupts import Interrupts
from ppll.job import Job, RankResult
from ppll.launching import rank_process
from ppll.launching.agent import Agent
from ppll.launching.failure import Failure
from ppll.launching.lifeline import LauncherEnd
from ppll.launching.script import GUARD
from ppll.launching.stall import (
    Pauses,
    describe,
    find_stall,
    is_stopped,
    request_stacks,
    stall_cause,
)
from ppll.status import Status, StatusPage

__all__ = ["Launcher", "Watcher"]

_log = logging.getLogger(__name__)

Watcher = Callable[[Sequence[Status]], None]
"""Is shown every rank's status a few times a second."""

_DIED: Final = "the process died"
_TURN_S: Final = 0.05
_HANDSHAKE_S: Final = 1.0
_GRACE_S: Final = 1.0
"""How long ranks may take to leave once a failure is known."""
_FAREWELL_S: Final = 10.0
"""The same once all have said what they came to."""
_HOPELESS_S: Final = 30.0
"""How long killed ranks may take to be gone: one that waits inside the system may never be."""
_IMPORTS: Final = (
    f"The processes of a run import the script that trains: does what trains in it stand below "
    f"{GUARD}? If it does, look above for what they printed."
)


class Launcher:
    """Carries out a job in one process a stage of every replica.

    Args:
        job: The run.
        interrupts: Signals so far; the first ends the stream, the second everything.
        watch: Is shown every rank's status a few times a second.
    """

    def __init__(self, job: Job, interrupts: Interrupts, watch: Watcher | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ppll-"))
        self._job = replace(
            job,
            sockets=self._folder,
            leftovers=(self._folder, fork_server.temporary_folder()),
            secret=secrets.token_bytes(32),
        )
        self._interrupts = interrupts
        self._watch = watch
        self._pages = [StatusPage() for _ in range(job.mesh.size)]
        self._lines: dict[int, LauncherEnd] = {}
        self._failures: list[Failure] = []
        self._over_at: float | None = None
        """When no rank is to be there any more."""
        self._killed_at = math.inf
        """When ranks were killed for the first time; inf before."""
        self._told_to_end = False
        self._pauses = Pauses()
        self._selector = selectors.DefaultSelector()

    def run(self) -> list[RankResult]:
        """Start the ranks and wait for their results, in order of rank.

        Raises:
            WorkerError: A rank failed; all are gone.
            Interrupted: A second signal came, or one to all processes while they came up.
        """
        agent = Agent(rank_process.main, (self._job,), self._job.mesh.size, self._folder)
        try:
            fork_server.warm_up()
            self._listen()
            agent.start()
            while agent.is_running() and not self._is_hopeless:
                self._turn(agent)
            while self._hear(timeout_s=0):
                pass
            return self._collect(agent)
        finally:
            self._end(agent)

    def _turn(self, agent: Agent) -> None:
        with self._pauses.noticed():
            self._hear(_TURN_S)
        for rank in agent.ended_ranks():
            if rank not in self._lines and not self._failures:
                self._note(self._silent(rank, _DIED))
        if self._watch is not None and not self._failures:
            self._watch([page.read() for page in self._pages])
        self._pass_on_interrupts(agent)
        self._look_for_stall(agent)
        if self._over_at is not None and time.monotonic() > self._over_at:
            self._kill_all(agent)

    # --- hearing ranks ---------------------------------------------------------------------

    def _listen(self) -> None:
        for rank in range(self._job.mesh.size):
            listener = sockets.listen(rank_process.line_path(self._job, rank))
            self._selector.register(listener, selectors.EVENT_READ, data=rank)

    def _hear(self, timeout_s: float) -> bool:
        """Take in what has come; whether anything has."""
        events = self._selector.select(timeout_s)
        for key, _ in events:
            assert isinstance(key.fileobj, socket.socket)
            if isinstance(key.data, LauncherEnd):
                self._hear_rank(key.data)
            else:
                self._accept(key.fileobj, key.data)
        return bool(events)

    def _accept(self, listener: socket.socket, rank: int) -> None:
        with suppress(ChannelTimeout):
            connection = sockets.accept(listener, self._job.secret, _HANDSHAKE_S)
            self._selector.unregister(listener)
            line = LauncherEnd(connection, rank)
            self._selector.register(connection, selectors.EVENT_READ, data=line)

    def _hear_rank(self, line: LauncherEnd) -> None:
        try:
            is_there = line.receive()
        except ProtocolError as error:
            self._give_up(line, error)
            return
        if line.rank >= 0 and line.rank not in self._lines:
            self._lines[line.rank] = line
            line.welcome(self._pages[line.rank])
        if line.failure is not None:
            self._note(line.failure)
        if line.result is not None and len(self._through) == self._job.mesh.size:
            self._over_at = self._over_at or time.monotonic() + _FAREWELL_S
        if not is_there:
            self._selector.unregister(line.socket)
            line.close()
            spoke = line.failure or line.result or line.aftermath
            if line.rank >= 0 and not spoke and not self._failures:
                self._note(self._silent(line.rank, _DIED))

    def _give_up(self, line: LauncherEnd, error: ProtocolError) -> None:
        """Part with a rank that talks nonsense; one that cannot be killed yet leaves by itself."""
        self._note(self._silent(line.expected_rank, f"{type(error).__name__}: {error}"))
        self._selector.unregister(line.socket)
        self._kill(line)
        line.close()

    def _note(self, failure: Failure) -> None:
        if not self._failures:
            self._over_at = time.monotonic() + _GRACE_S
        if failure not in self._failures:
            self._failures.append(failure)

    def _silent(self, rank: int, cause: str, detail: str = "") -> Failure:
        status, place = self._pages[rank].read(), self._job.mesh.place(rank)
        return Failure.silent(rank, status, time.monotonic(), cause, detail, place)

    # --- ending ----------------------------------------------------------------------------

    @property
    def _through(self) -> set[int]:
        """Ranks that have said what they came to."""
        return {rank for rank, line in self._lines.items() if line.result is not None}

    def _pass_on_interrupts(self, agent: Agent) -> None:
        if self._interrupts.wish and not self._told_to_end and 0 in self._lines:
            self._lines[0].ask_to_end(self._interrupts.wish)
            self._told_to_end = True
        if self._interrupts.count > 1:
            self._kill_all(agent)

    def _look_for_stall(self, agent: Agent) -> None:
        if self._failures:
            return
        statuses = [page.read() for page in self._pages]
        timeout_s = self._job.recipe.runtime.stall_timeout_s
        now_s = time.monotonic()
        rank = find_stall(
            statuses,
            self._job.mesh,
            now_s,
            timeout_s,
            lambda r: r in self._lines and is_stopped(self._lines[r].pid),
            self._through,
            self._pauses.resumed_s,
        )
        if rank is not None:
            detail = f"{describe(statuses, now_s)}\n{self._stacks(rank)}"
            self._note(self._silent(rank, stall_cause(timeout_s), detail))
            self._kill_all(agent)

    def _stacks(self, rank: int) -> str:
        if rank not in self._lines:
            return f"It has not reached the launcher. {_IMPORTS}"
        path = rank_process.stacks_path(self._job, rank)
        return request_stacks(self._lines[rank].pid, path, rank_process.STACKS_SIGNAL)

    @property
    def _is_hopeless(self) -> bool:
        """Whether ranks are still there long after they were killed."""
        return time.monotonic() > self._killed_at + _HOPELESS_S

    def _kill_all(self, agent: Agent) -> None:
        self._killed_at = min(self._killed_at, time.monotonic())
        for line in self._lines.values():
            self._kill(line)
        agent.kill()  # Where the fork server is gone it knows of none.

    def _kill(self, line: LauncherEnd) -> None:
        if line.is_open and line.rank >= 0:
            with suppress(ProcessLookupError):
                os.kill(line.pid, signal.SIGKILL)

    def _end(self, agent: Agent) -> None:
        """Leave nothing behind, whatever went wrong; ranks that come late are heard and killed."""
        deadline = time.monotonic() + _GRACE_S
        # Where the fork server is gone the agent takes its ranks for gone, too.
        while agent.is_running() or (self._anyone_is_there() and time.monotonic() < deadline):
            if self._is_hopeless:
                there = [line.pid for line in self._lines.values() if line.is_open]
                _log.warning("processes %s cannot be killed: they are left behind.", there)
                fork_server.leave_behind()
                break
            with suppress(ChannelError):
                self._hear(_TURN_S)
            self._kill_all(agent)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
        for page in self._pages:
            page.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _anyone_is_there(self) -> bool:
        return any(line.is_open for line in self._lines.values())

    def _collect(self, agent: Agent) -> list[RankResult]:
        results = [line.result for _, line in sorted(self._lines.items()) if line.result]
        if len(results) == self._job.mesh.size and not self._failures:
            return results
        if self._interrupts.count > 1:
            raise Interrupted("interrupted twice: stopped at once, nothing more was saved.")
        first = self._first_cause(agent)
        if self._interrupts.count and self._fell_to_a_signal(agent, first.rank):
            raise Interrupted("stopped before training began; nothing more was saved.")
        raise WorkerError(first.message(), first)

    def _fell_to_a_signal(self, agent: Agent, rank: int) -> bool:
        """Whether a signal that came to all processes ended a rank before it could say anything."""
        ends = [-number for number in fork_server.SIGNALS]
        return rank not in self._lines and agent.exit_codes().get(rank) in ends

    def _first_cause(self, agent: Agent) -> Failure:
        """The earliest failure; one of a rank that died without a word gets its exit code."""
        codes = agent.exit_codes()
        aftermaths = [line.aftermath for line in self._lines.values() if line.aftermath]
        if not (known := self._failures or aftermaths):
            return self._silence(agent, codes)
        first = min(known, key=lambda failure: failure.time_s)
        missing = [r for r in range(self._job.mesh.size) if r not in self._lines]
        if missing and ChannelTimeout.__name__ in first.cause.partition(": ")[0]:
            return self._silent(missing[0], f"it did not come up: {first.cause}")
        if first.cause == _DIED:
            ending = _ending(codes.get(first.rank))
            return replace(first, cause=ending if first.rank in self._lines else _unheard(ending))
        return first

    def _silence(self, agent: Agent, codes: dict[int, int]) -> Failure:
        """The failure of a start of which no rank has said anything."""
        if self._anyone_is_there() or agent.error is not None:
            return self._silent(0, f"the fork server is gone ({agent.error or 'it was killed'})")
        rank = next((r for r, code in codes.items() if code), 0)
        return self._silent(rank, _unheard(_ending(codes.get(rank))))


def _unheard(ending: str) -> str:
    """What to say of a rank that ended before it could say anything."""
    return f"{ending} before it reached the launcher. {_IMPORTS}"


def _ending(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return _DIED
    if code >= 0:
        return f"the process exited with code {code}"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"the process was killed by {signal.Signals(-code).name}{hint}"
