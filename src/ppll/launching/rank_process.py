"""A rank as a process of its own: what is around ``run_rank`` when the launcher started it."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import NoReturn

from ppll.errors import ChannelClosed
from ppll.faults import injected_monitor
from ppll.job import Job
from ppll.launching.failure import Failure
from ppll.launching.lifeline import RankEnd
from ppll.rank import run_rank
from ppll.status import Monitor

__all__ = ["STACKS_SIGNAL", "line_path", "log_path", "main", "stacks_path"]

STACKS_SIGNAL = signal.SIGUSR1
"""On this signal a rank writes the stacks of all its threads."""


def line_path(job: Job, rank: int) -> Path:
    """Where the launcher waits for a rank."""
    assert job.sockets is not None
    return job.sockets / f"launcher-{rank}"


def log_path(job: Job, rank: int) -> Path:
    """What a rank prints."""
    return job.folder.logs / f"rank-{rank}.txt"


def stacks_path(job: Job, rank: int) -> Path:
    """Where a rank writes its threads' stacks when it is asked to."""
    return job.folder.logs / f"rank-{rank}-stacks.txt"


def main(job: Job) -> None:
    """Entry point of a rank that the elastic agent started; RANK says which."""
    rank = int(os.environ["RANK"])
    # Both belong to the launcher, which ends the stream; a rank that died of them would lose it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _redirect_output(log_path(job, rank))
    line = RankEnd(line_path(job, rank), job.secret, rank, job.leftovers)
    monitor = injected_monitor(job.fault, job.generation, rank, Monitor(line.page))
    with stacks_path(job, rank).open("w", encoding="utf-8") as stacks:
        faulthandler.register(STACKS_SIGNAL, file=stacks, all_threads=True)
        tell = partial(_tell, line, job, rank, monitor)
        try:
            result = run_rank(job, rank, monitor, lambda: line.wish, tell=tell)
        except BaseException as error:
            tell(error)  # It may have come of closing.
            _leave()
        line.report_result(result)
        faulthandler.unregister(STACKS_SIGNAL)


def _tell(line: RankEnd, job: Job, rank: int, monitor: Monitor, error: BaseException) -> None:
    """Say what went wrong; what follows from it is no news."""
    if line.has_told:
        return
    place = job.mesh.place(rank)
    failure = Failure.of(error, rank, monitor.status, time.monotonic(), place)
    if isinstance(error, ChannelClosed):
        line.report_aftermath(failure)
        return
    line.report_failure(failure)
    sys.stderr.write(failure.message() + "\n")


def _redirect_output(path: Path) -> None:
    """Let everything that this process prints, C libraries included, go to its log."""
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def _leave() -> NoReturn:
    """End the process at once: threads and destructors have nothing left to do."""
    sys.stderr.flush()
    os._exit(1)
