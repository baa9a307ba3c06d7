"""Start a rival's ranks, gather what they measured, and name the first cause of a failure."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Final, cast

import safetensors.torch
from torch import Tensor

from ppll import fork_server
from ppll.baselines import process
from ppll.baselines.process import Assignment, RankReport
from ppll.baselines.systems import Layout, system_named
from ppll.baselines.work import Workload
from ppll.errors import WorkerError
from ppll.faults import Fault
from ppll.launching.failure import Failure
from ppll.launching.stall import request_stacks
from ppll.status import StatusPage

__all__ = ["BaselineResult", "run_baseline"]

_GRACE_S: Final = 0.5
"""How long other ranks may take to say what they know of a failure."""
_LEAVE_S: Final = 1.0
"""How long a rank may take to leave once all have reported."""


@dataclass(frozen=True)
class BaselineResult:
    """What a rival measured.

    Attributes:
        system: Its name.
        num_ranks: Processes.
        num_microbatches: Slices of a batch.
        seconds_per_batch: Of each timed batch: from when the last rank had updated to when the
            last rank had updated again.
        losses: Mean loss of every batch, untimed ones included.
        bytes_sent: Bytes of tensors that each rank hands to the transport for a batch: features
            and their gradients, or the parameters' gradients.
        processor_s: Seconds of processor time that each rank takes for a batch, the transport's
            threads and the kernel included. Where emulated ranks together take about as much as
            the machine has, they wait for its processors and not for each other.
        base_memory_bytes: Most memory each process had before it built anything; what it imports.
        peak_memory_bytes: Most memory each process had at all.
        weights: The trained parameters and buffers by their name in the whole network.
        gradients: The last batch's gradients, unclipped, where they were asked for.
    """

    system: str
    num_ranks: int
    num_microbatches: int
    seconds_per_batch: tuple[float, ...]
    losses: tuple[float, ...]
    bytes_sent: tuple[int, ...]
    processor_s: tuple[float, ...]
    base_memory_bytes: tuple[int, ...]
    peak_memory_bytes: tuple[int, ...]
    weights: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    gradients: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def median_s(self) -> float:
        """Seconds of a batch: the median."""
        return statistics.median(self.seconds_per_batch)


def run_baseline(
    system: str,
    work: Workload,
    *,
    num_batches: int,
    num_ranks: int = 1,
    num_microbatches: int = 1,
    warm_up: int = 0,
    keeps_weights: bool = True,
    keeps_gradients: bool = False,
    timeout_s: float = 600.0,
) -> BaselineResult:
    """Run a rival in processes of its own.

    Args:
        system: Its name, one of ``ppll.baselines.SYSTEMS``.
        work: What it computes.
        num_batches: Batches in all, each followed by an update.
        num_ranks: Processes; the only one of ``backprop``.
        num_microbatches: Slices of a batch; pipelines only.
        warm_up: How many batches, from the first on, are not timed.
        keeps_weights: Whether the result holds the trained weights.
        keeps_gradients: Whether it holds the last batch's gradients.
        timeout_s: How long all of it may take.

    Raises:
        UsageError: It cannot be run so; no process was started.
        WorkerError: A rank failed, or they took too long; none is left.
    """
    layout = Layout(system_named(system), num_ranks, num_microbatches, num_batches, warm_up)
    work = work.prepared(layout)
    fork_server.warm_up()
    folder = Path(tempfile.mkdtemp(prefix="ppll-"))
    assignment = Assignment(
        work,
        layout,
        folder,
        timeout_s,
        keeps_weights,
        keeps_gradients,
        Fault.from_environment(),
    )
    try:
        return _merge(layout, _Ranks(assignment).run())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Ranks:
    """The processes of a rival.

    Args:
        assignment: What they are told.
    """

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._processes: list[ForkServerProcess] = []
        self._ends: list[Connection] = []
        self._pages: list[StatusPage] = []
        self._reports: dict[int, RankReport] = {}
        self._failures: list[tuple[bool, Failure]] = []
        self._deadline = time.monotonic() + assignment.timeout_s

    def run(self) -> list[RankReport]:
        """Every rank's report, in order of rank.

        Raises:
            WorkerError: A rank failed, or they took too long.
        """
        try:
            for rank in range(self._assignment.layout.num_ranks):
                self._start(rank)
            while len(self._reports) < len(self._ends) and not self._failures:
                if not self._hear(self._deadline):
                    self._raise_late()
            if self._failures:
                self._raise_first_cause()
            return [self._reports[rank] for rank in range(len(self._ends))]
        finally:
            self._end()

    def _start(self, rank: int) -> None:
        context = multiprocessing.get_context("forkserver")
        self._pages.append(process.open_page(self._assignment.folder, rank))
        ours, theirs = context.Pipe(duplex=False)
        self._ends.append(ours)
        args = (self._assignment, rank, theirs)
        started = context.Process(target=process.main, args=args, daemon=True)
        started.start()
        self._processes.append(started)
        theirs.close()

    def _hear(self, deadline: float) -> bool:
        """Take in what ranks say until then; false when nobody said anything."""
        left_s = max(0.0, deadline - time.monotonic())
        heard = {failure.rank for _, failure in self._failures} | self._reports.keys()
        ends = [end for rank, end in enumerate(self._ends) if rank not in heard]
        spoken = cast(list[Connection], connection.wait(ends, left_s)) if ends else []
        for end in spoken:
            self._understand(self._ends.index(end), end)
        return bool(spoken)

    def _understand(self, rank: int, end: Connection) -> None:
        try:
            news = end.recv()
        except (EOFError, ConnectionError):
            news = (self._dead(rank), False)
        if isinstance(news, RankReport):
            self._reports[rank] = news
        else:
            failure, is_aftermath = news
            self._failures.append((is_aftermath, failure))

    def _raise_late(self) -> None:
        """Say where everybody stands: who keeps the others waiting cannot be told from outside."""
        late = [rank for rank in range(len(self._ends)) if rank not in self._reports]
        statuses = {rank: self._pages[rank].read() for rank in late}
        cause = f"no end after {self._assignment.timeout_s:g} s"
        stacks = "".join(
            f"\nrank {rank}, at step {status.step}:\n{self._stacks(rank)}"
            for rank, status in statuses.items()
        )
        failure = Failure.silent(late[0], statuses[late[0]], time.monotonic(), cause, stacks)
        raise WorkerError(f"{cause}; still at work:{stacks}", failure)

    def _raise_first_cause(self) -> None:
        """Of several failures, the earliest that is not the wake of another."""
        deadline = time.monotonic() + _GRACE_S
        while self._hear(deadline):
            pass
        _, first = min(self._failures, key=lambda item: (item[0], item[1].time_s))
        raise WorkerError(first.message(), first)

    def _dead(self, rank: int) -> Failure:
        status, cause = self._pages[rank].read(), self._how_it_ended(rank)
        return Failure.silent(rank, status, time.monotonic(), cause, self._log(rank))

    def _how_it_ended(self, rank: int) -> str:
        self._processes[rank].join(_LEAVE_S)
        code = self._processes[rank].exitcode
        if code is not None and code < 0:
            return f"the process was killed by {signal.Signals(-code).name}"
        return f"the process ended with exit code {code}"

    def _log(self, rank: int) -> str:
        with suppress(OSError):
            path = process.log_path(self._assignment.folder, rank)
            return path.read_text(encoding="utf-8", errors="replace")[-4000:].rstrip()
        return ""

    def _stacks(self, rank: int) -> str:
        pid = self._processes[rank].pid
        path = process.stacks_path(self._assignment.folder, rank)
        return request_stacks(pid, path, process.STACKS_SIGNAL) if pid else ""

    def _end(self) -> None:
        """Leave nothing behind."""
        has_ended = len(self._reports) == len(self._ends)
        deadline = time.monotonic() + (_LEAVE_S if has_ended else 0.0)
        for started in self._processes:
            started.join(max(0.0, deadline - time.monotonic()))
        for started in self._processes:
            if started.is_alive():
                started.kill()
        for started in self._processes:
            started.join()
            started.close()
        for end in self._ends:
            end.close()
        for page in self._pages:
            page.close()


def _merge(layout: Layout, reports: list[RankReport]) -> BaselineResult:
    """One result of all ranks' reports."""
    start_s = max(report.start_s for report in reports)
    ends_s = [start_s, *map(max, zip(*(report.end_s for report in reports), strict=True))]
    seconds = [after - before for before, after in pairwise(ends_s)]
    losses = [report.losses for report in reports if report.losses]
    return BaselineResult(
        layout.system.name,
        layout.num_ranks,
        layout.num_microbatches,
        tuple(seconds[layout.warm_up :]),
        tuple(statistics.fmean(values) for values in zip(*losses, strict=True)),
        tuple(report.bytes_sent // layout.num_batches for report in reports),
        tuple(report.processor_s / layout.num_batches for report in reports),
        tuple(report.base_memory_bytes for report in reports),
        tuple(report.peak_memory_bytes for report in reports),
        _tensors([report.weights for report in reports]),
        _tensors([report.gradients for report in reports]),
    )


def _tensors(parts: list[bytes]) -> dict[str, Tensor]:
    """The tensors of all ranks; replicas have the same ones."""
    merged: dict[str, Tensor] = {}
    for part in reversed([part for part in parts if part]):
        merged.update(safetensors.torch.load(part))
    return merged
