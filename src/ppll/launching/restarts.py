"""A run from its start to its end, started again from its newest checkpoint where it fails."""

from __future__ import annotations

import logging

from ppll.checkpoints.starting import Beginning, next_start
from ppll.errors import WorkerError
from ppll.interrupts import Interrupts
from ppll.job import Job, RankResult
from ppll.launching.failure import Failure
from ppll.launching.in_process import run_here
from ppll.launching.launch import Launcher, Watcher

__all__ = ["carry_out", "run_with_restarts"]

_log = logging.getLogger(__name__)


def run_with_restarts(
    beginning: Beginning, interrupts: Interrupts, watch: Watcher | None, max_restarts: int
) -> list[RankResult]:
    """Carry a run out, with at most so many restarts.

    A failure that has come before, the same exception at the same step, is not tried again.

    Raises:
        WorkerError: A stage failed, and no restart is left or would help.
        Interrupted: A second signal came.
    """
    last: Failure | None = None
    for generation in range(max_restarts + 1):
        job = next_start(beginning, generation)
        try:
            return carry_out(job, interrupts, watch, own_process=max_restarts > 0)
        except WorkerError as error:
            if generation == max_restarts or interrupts.wish:
                raise
            if last is not None and error.failure.repeats(last):
                raise WorkerError(
                    f"{error}\nThe same happened after the restart, so it is not tried again.",
                    error.failure,
                ) from None
            last = error.failure
            _log.warning("restart %d of %d after: %s", generation + 1, max_restarts, last.head())
    raise AssertionError("every start returns or raises")


def carry_out(
    job: Job, interrupts: Interrupts, watch: Watcher | None, *, own_process: bool = False
) -> list[RankResult]:
    """Run all ranks of a job; one alone stays in this process, unless it is to have its own."""
    if job.mesh.size > 1 or own_process:
        return Launcher(job, interrupts, watch).run()
    return [run_here(job, interrupts, watch)]
