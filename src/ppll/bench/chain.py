"""A pipeline whose blocks only take time: what is left is the system around them.

Only the blocks are doubles: devices emulated by sleeping. Processes (from the fork server), the
prefetching thread, ``shared`` channels, the worker and ``drain`` are the ones that train networks.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ppll.baselines.sleeping import Sleeper
from ppll.bench.rank_report import Footprint, RankReport
from ppll.block import Block
from ppll.channels.base import Inbox, SendEnd, SlotLayout
from ppll.channels.shared import SharedReceiveEnd, SharedSendEnd
from ppll.ends import Ends, Waiting
from ppll.fork_server import warm_up
from ppll.message import FEATURES, TARGETS, Kind, Message
from ppll.methods.base import Method
from ppll.metrics import Counts, Tally
from ppll.prefetch import Prefetcher
from ppll.status import Monitor
from ppll.worker import Worker, drain

__all__ = [
    "BlockTimes",
    "Chain",
    "chain_messages",
    "run_chain",
    "run_stage",
]

_CONNECT_TIMEOUT_S = 60.0
_FLOAT_BYTES = torch.float32.itemsize
_BATCH = 64


@dataclass(frozen=True)
class BlockTimes:
    """What an emulated block takes for a message.

    Attributes:
        forward_s: How long it sleeps in its forward.
        learn_s: How long it sleeps in its learning step.
        payload_bytes: Size of the features that it sends on.
    """

    forward_s: float = 0.0
    learn_s: float = 0.0
    payload_bytes: int = 0


@dataclass(frozen=True)
class Chain:
    """A pipeline to run.

    Attributes:
        stages: The blocks of every process.
        num_batches: Training messages that pass through all of them.
        capacity: Slots of a channel.
        keeps_times: Whether every rank reports when it had learned from each message.
        footprint_steps: Steps after which every rank looks at its memory.
        timeout_s: How long all of it may take.
    """

    stages: tuple[tuple[BlockTimes, ...], ...]
    num_batches: int
    capacity: int = 4
    keeps_times: bool = False
    footprint_steps: tuple[int, ...] = ()
    timeout_s: float = 600.0

    @classmethod
    def even(cls, num_stages: int, block: BlockTimes, num_batches: int, **options: Any) -> Chain:
        """A pipeline with the same block in every process."""
        return cls(((block,),) * num_stages, num_batches, **options)

    @property
    def num_stages(self) -> int:
        """Number of processes."""
        return len(self.stages)

    def layout(self, rank: int) -> SlotLayout:
        """What a slot before a stage, not the first, must hold."""
        payload_bytes = self.stages[rank - 1][-1].payload_bytes
        return SlotLayout({FEATURES: payload_bytes, TARGETS: _BATCH * torch.int64.itemsize})


class SleepingBlock:
    """Has the face of a ``ppll.block.Block`` and sleeps where that one computes."""

    def __init__(self, index: int, times: BlockTimes, sleeper: Sleeper) -> None:
        self.index = index
        self.device = torch.device("cpu")
        self.counts = Counts(self.device)
        self._times = times
        self._sleeper = sleeper
        self._features = torch.zeros(times.payload_bytes // _FLOAT_BYTES)

    def forward(self, message: Message) -> Message:
        """Hand on features of its own, as a block that computes does, after a while."""
        self._sleeper(self._times.forward_s)
        return message.with_tensors(**{FEATURES: self._features})

    slow = None
    method = Method
    """Of which blocks exchange features alone."""

    def learn(self, *_: object) -> dict[str, Tensor]:
        """Take the time of a learning step."""
        self._sleeper(self._times.learn_s)
        return {}

    def take_training(self) -> Tally:
        """Nothing was counted."""
        return self.counts.take()

    def evaluate(self) -> None:
        """Nothing is evaluated."""


class _Observed(Worker):
    """A worker that notes when it has learned from a message, and what it holds then."""

    def __init__(self, chain: Chain, report: RankReport, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._chain = chain
        self._report = report

    def _handle(self, message: Message) -> Iterator[Waiting]:
        yield from super()._handle(message)
        if message.kind is Kind.TRAIN:
            if self._chain.keeps_times:
                self._report.times_s.append(time.monotonic())
            if message.step in self._chain.footprint_steps:
                self._report.footprints.append(Footprint.now(message.step))


def run_chain(chain: Chain) -> list[RankReport]:
    """Run a pipeline in processes of its own and gather what every rank reports.

    Raises:
        RuntimeError: A rank failed; none is left.
        TimeoutError: It took too long; none is left.
    """
    warm_up()
    context = multiprocessing.get_context("forkserver")
    secret = secrets.token_bytes(32)
    processes: list[multiprocessing.context.ForkServerProcess] = []
    ends: list[Connection] = []
    with tempfile.TemporaryDirectory(prefix="ppll-") as folder:
        try:
            for rank in range(chain.num_stages):
                ours, theirs = context.Pipe(duplex=False)
                args = (chain, rank, Path(folder), secret, theirs)
                process = context.Process(target=_run_rank, args=args, daemon=True)
                process.start()
                theirs.close()
                processes.append(process)
                ends.append(ours)
            return _gather(ends, chain.timeout_s)
        finally:
            for process in processes:
                process.join(1)
                if process.is_alive():
                    process.kill()
                    process.join()
            for end in ends:
                end.close()


def _gather(ends: list[Connection], timeout_s: float) -> list[RankReport]:
    """Every rank's report, in order of rank; the first rank that ends without one is an error."""
    deadline = time.monotonic() + timeout_s
    reports: dict[int, RankReport] = {}
    while waiting := [end for rank, end in enumerate(ends) if rank not in reports]:
        spoken = multiprocessing.connection.wait(waiting, max(0.0, deadline - time.monotonic()))
        if not spoken:
            raise TimeoutError(f"{len(waiting)} ranks have not finished after {timeout_s:g} s.")
        for end in cast(list[Connection], spoken):
            rank = ends.index(end)
            try:
                reports[rank] = end.recv()
            except EOFError:
                raise RuntimeError(f"rank {rank} died; its traceback is above.") from None
    return [reports[rank] for rank in range(len(ends))]


def _run_rank(chain: Chain, rank: int, folder: Path, secret: bytes, result: Connection) -> None:
    torch.set_num_threads(1)
    with ExitStack() as stack:
        result.send(run_stage(chain, rank, Ends(*_connect(chain, rank, folder, secret, stack))))


def run_stage(chain: Chain, rank: int, ends: Ends) -> RankReport:
    """Run one stage to its end, whatever its ends are.

    Args:
        chain: The pipeline.
        rank: Which of its stages.
        ends: Where messages come from and go to; the caller closes them.
    """
    report, monitor, sleeper = RankReport(), Monitor(), Sleeper()
    if chain.footprint_steps:
        Footprint.now(0)  # the first look takes memory of its own
    blocks = [SleepingBlock(i, times, sleeper) for i, times in enumerate(chain.stages[rank])]
    worker = _Observed(chain, report, cast(list[Block], blocks), ends, monitor=monitor)
    drain(worker.run())
    report.busy_fraction = monitor.busy_fraction()
    report.activity_s = {a.name.lower(): s for a, s in monitor.seconds.items()}
    return report


def _connect(
    chain: Chain, rank: int, folder: Path, secret: bytes, stack: ExitStack
) -> tuple[Inbox, SendEnd | None]:
    """As ``ppll.rank`` does: listen, then connect, then accept."""
    receiver = outbox = None
    if rank > 0:
        receiver = SharedReceiveEnd.listen(
            folder / str(rank), chain.layout(rank), chain.capacity, secret
        )
        stack.callback(receiver.close)
    if rank + 1 < chain.num_stages:
        outbox = SharedSendEnd.connect(folder / str(rank + 1), secret, _CONNECT_TIMEOUT_S)
        stack.callback(outbox.close)
    if receiver is not None:
        receiver.accept(_CONNECT_TIMEOUT_S)
        return receiver, outbox
    loader = Prefetcher(chain_messages(chain), chain.capacity)
    stack.callback(loader.close)
    return loader, outbox


def chain_messages(chain: Chain) -> Iterator[Message]:
    """What the first stage of a pipeline reads: training messages, then the stop."""
    tensors = {
        FEATURES: torch.zeros(1),
        TARGETS: torch.zeros(_BATCH, dtype=torch.int64),
    }
    for step in range(1, chain.num_batches + 1):
        yield Message(kind=Kind.TRAIN, sequence=step - 1, step=step, tensors=tensors)
    yield Message(kind=Kind.STOP, sequence=chain.num_batches, step=chain.num_batches)
