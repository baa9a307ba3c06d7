"""One rank of a rival as a process of its own."""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, NoReturn

import safetensors.torch
from torch import distributed as dist

from ppll.baselines.backends import backend_of
from ppll.baselines.loops import Backprop, Replicas, Runner
from ppll.baselines.losses import Losses
from ppll.baselines.systems import Layout
from ppll.baselines.work import Part, Workload
from ppll.batch_ends import BatchEnds
from ppll.devices import peak_memory_bytes
from ppll.faults import Fault
from ppll.launching.failure import Failure
from ppll.status import Activity, Monitor, StatusPage

__all__ = [
    "STACKS_SIGNAL",
    "Assignment",
    "RankReport",
    "log_path",
    "main",
    "open_page",
    "run",
    "stacks_path",
]

STACKS_SIGNAL: Final = signal.SIGUSR1
"""On this signal a rank writes the stacks of all its threads."""


@dataclass(frozen=True)
class Assignment:
    """What every rank is told.

    Attributes:
        work: What is computed; ``prepared``.
        layout: By which rival, on how many ranks.
        folder: Private folder in which the ranks meet.
        timeout_s: How long a rank waits for another.
        keeps_weights: Whether the trained weights are reported.
        keeps_gradients: Whether the last batch's gradients are reported.
        fault: The failure that a test wants.
        interface: The network interface over which the ranks talk; the loopback one without.
    """

    work: Workload
    layout: Layout
    folder: Path
    timeout_s: float
    keeps_weights: bool = True
    keeps_gradients: bool = False
    fault: Fault | None = None
    interface: str | None = None


@dataclass
class RankReport:
    """What a rank measured.

    Attributes:
        start_s: When all ranks were ready, by the machine's monotonic clock.
        end_s: When its device had updated after each batch.
        losses: Mean loss of every batch, where the rank knows it.
        bytes_sent: Bytes of tensors handed to the transport, of all batches.
        processor_s: Seconds of processor time from ``start_s`` to the end, kernel included.
        base_memory_bytes: Most memory the process had before it built anything; of a GPU, what
            torch had allocated there.
        peak_memory_bytes: Most memory it had at all, of the same kind.
        weights: What ``safetensors`` makes of the trained weights.
        gradients: And of the last batch's gradients.
    """

    start_s: float = 0.0
    end_s: array[float] = field(default_factory=lambda: array("d"))
    losses: array[float] = field(default_factory=lambda: array("d"))
    bytes_sent: int = 0
    processor_s: float = 0.0
    base_memory_bytes: int = 0
    peak_memory_bytes: int = 0
    weights: bytes = b""
    gradients: bytes = b""


def log_path(folder: Path, rank: int) -> Path:
    """What a rank prints."""
    return folder / f"rank-{rank}.txt"


def stacks_path(folder: Path, rank: int) -> Path:
    """Where a rank writes its threads' stacks when it is asked to."""
    return folder / f"stacks-{rank}.txt"


def open_page(folder: Path, rank: int) -> StatusPage:
    """What a rank says of itself while it works."""
    descriptor = os.open(folder / f"page-{rank}", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(descriptor, mmap.PAGESIZE)
    return StatusPage(descriptor)


def main(assignment: Assignment, rank: int, result: Connection) -> None:
    """Entry point of a rank.

    Args:
        assignment: What is to be done.
        rank: Who this is.
        result: Where its report or its failure goes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # belongs to the parent
    folder = assignment.folder
    threading.Thread(target=_follow_parent, args=(folder,), name="lifeline", daemon=True).start()
    _redirect_output(log_path(folder, rank))
    monitor = Monitor(open_page(folder, rank))
    with stacks_path(folder, rank).open("w", encoding="utf-8") as stacks:
        faulthandler.register(STACKS_SIGNAL, file=stacks, all_threads=True)
        try:
            # What holds gloo's threads lives until the process ends: to join them may never end.
            kept: list[object] = []
            result.send(run(assignment, rank, monitor, kept))
        except BaseException as error:
            failure = Failure.of(error, rank, monitor.status, time.monotonic())
            result.send((failure, _is_aftermath(error)))
        _leave()


def run(assignment: Assignment, rank: int, monitor: Monitor, kept: list[object]) -> RankReport:
    """Carry out one rank in this process, and say what it measured.

    Args:
        assignment: What is to be done.
        rank: Who this is.
        monitor: Where the rank says what it does.
        kept: Gets what is not torn down before the caller lets go of it.
    """
    device = assignment.work.devices(assignment.layout)[rank]
    report = RankReport(base_memory_bytes=peak_memory_bytes(device))
    part = assignment.work.part(assignment.layout, rank)
    with _group(assignment, rank):
        runner = _runner(assignment.layout, part, rank)
        kept += [part, runner]
        _train(assignment, rank, part, runner, monitor, report)
        report.bytes_sent = runner.bytes_sent
        report.peak_memory_bytes = peak_memory_bytes(device)
        if assignment.keeps_weights:
            report.weights = safetensors.torch.save(part.weights())
        _meet()
    return report


def _train(
    assignment: Assignment,
    rank: int,
    part: Part,
    runner: Runner,
    monitor: Monitor,
    report: RankReport,
) -> None:
    """The loop: gradients of a batch, then an update."""
    layout, fault = assignment.layout, assignment.fault
    losses, ends = Losses(part), BatchEnds(part.device)
    _meet()
    report.start_s, processor_s = time.monotonic(), time.process_time()
    for step, batch in enumerate(part.batches(), 1):
        monitor.enter(Activity.LEARN, step=step)
        if fault is not None and (fault.rank, fault.step) == (rank, step):
            fault.strike()
        loss = runner.step(batch)
        if loss is not None:
            losses.add(loss)
        if assignment.keeps_gradients and step == layout.num_batches:
            report.gradients = safetensors.torch.save(part.gradients())
        part.update(step)
        ends.note()
    report.end_s = ends.times_s()
    report.processor_s = time.process_time() - processor_s
    losses.look()
    report.losses = losses.values
    monitor.enter(Activity.FINISH)


def _runner(layout: Layout, part: Part, rank: int) -> Runner:
    match layout.system.kind:
        case "single":
            return Backprop(part)
        case "replicas":
            return Replicas(part, rank)
        case "pipeline":
            # Only who runs a pipeline pays for importing it.
            from ppll.baselines.pipelines import Pipeline

            return Pipeline(part, layout, rank)


@contextlib.contextmanager
def _group(assignment: Assignment, rank: int) -> Iterator[None]:
    """All ranks connected, if there are several."""
    layout = assignment.layout
    devices = assignment.work.devices(layout)
    backend = backend_of(layout.system.name, devices)
    if backend is None:
        yield
        return
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ[f"{backend.upper()}_SOCKET_IFNAME"] = assignment.interface or loopback
    dist.init_process_group(
        backend,
        init_method=f"file://{assignment.folder}/meeting",
        rank=rank,
        world_size=layout.num_ranks,
        timeout=timedelta(seconds=assignment.timeout_s),
        device_id=devices[rank] if backend == "nccl" else None,
    )
    yield
    dist.destroy_process_group()


def _meet() -> None:
    """Wait until all ranks are here."""
    if dist.is_initialized():
        dist.barrier()


def _is_aftermath(error: BaseException) -> bool:
    """Whether the transport failed, which it does when another rank is gone."""
    is_of_nccl = isinstance(error, dist.DistBackendError)
    return is_of_nccl or "gloo/transport" in str(error)


def _follow_parent(folder: Path) -> None:
    """Clean up and leave when the process that started this one is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _redirect_output(path: Path) -> None:
    """Let everything that this process prints, C libraries included, go to its log."""
    with path.open("ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def _leave() -> NoReturn:
    """End the process at once: threads and destructors have nothing left to do."""
    os._exit(0)
