"""The only stage of a run, in the calling process."""

from __future__ import annotations

import faulthandler
import logging
import math
import tempfile
import threading
import time

from ppll.errors import WorkerError
from ppll.faults import injected_monitor
from ppll.interrupts import Interrupts
from ppll.job import Job, RankResult
from ppll.launching.failure import Failure
from ppll.launching.launch import Watcher
from ppll.launching.stall import Pauses, describe, find_stall, stall_cause
from ppll.numerics import torch_as_new
from ppll.rank import run_rank
from ppll.status import Monitor, StatusPage

__all__ = ["run_here"]

_log = logging.getLogger(__name__)

_TURN_S = 0.1
_END_S = 5.0
"""How long a stage that stands still may take to end by an error."""


def run_here(job: Job, interrupts: Interrupts, watch: Watcher | None) -> RankResult:
    """Carry out a job of one stage.

    Raises:
        WorkerError: It failed, or stood still for too long.
    """
    with torch_as_new():  # While others have their turn there is nothing to look at.
        return _run_watched(job, interrupts, watch)


def _run_watched(job: Job, interrupts: Interrupts, watch: Watcher | None) -> RankResult:
    page = StatusPage()
    monitor = injected_monitor(job.fault, job.generation, 0, Monitor(page))
    ended = threading.Event()
    looker = threading.Thread(target=_look, args=(job, page, watch, interrupts, ended), daemon=True)
    looker.start()
    try:
        return run_rank(job, 0, monitor, lambda: interrupts.wish)
    except WorkerError:
        raise
    except Exception as error:
        failure = Failure.of(error, 0, monitor.status, time.monotonic())
        raise WorkerError(failure.message(), failure) from None  # its traceback is in the message
    finally:
        ended.set()
        looker.join()
        page.close()


def _look(
    job: Job,
    page: StatusPage,
    watch: Watcher | None,
    interrupts: Interrupts,
    ended: threading.Event,
) -> None:
    """Show the stage's status while it runs, and end a stage that stands still."""
    timeout_s = job.recipe.runtime.stall_timeout_s
    pauses = Pauses()
    told_since_s = -math.inf
    while True:
        with pauses.noticed():
            if ended.wait(_TURN_S):
                return
        status = page.read()
        if watch is not None:
            watch([status])
        now_s = time.monotonic()
        stall = find_stall([status], job.mesh, now_s, timeout_s, resumed_s=pauses.resumed_s)
        if stall is not None and status.since != told_since_s:
            told_since_s = status.since
            detail = f"{describe([status], now_s)}\n{_stacks()}"
            failure = Failure.silent(0, status, now_s, stall_cause(timeout_s), detail)
            interrupts.abort(WorkerError(failure.message(), failure))
            if not ended.wait(_END_S):
                _log.error("%s\nIt cannot be ended from here.", failure.message())


def _stacks() -> str:
    """The stacks of all threads of this process."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
