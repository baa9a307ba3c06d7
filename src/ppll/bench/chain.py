"""A pipeline whose blocks only take time: what is left is the system around them.

Only the blocks are doubles: devices emulated by sleeping. Processes (from the fork server), the
prefetching thread, ``shared`` channels, the worker and ``drain`` are the ones that train networks,
and so are the ends that cut and join messages and what adds up with other replicas.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import torch

from ppll.baselines.sleeping import Sleeper
from ppll.bench.chain_ends import edges_between, join_shared
from ppll.bench.rank_report import Footprint, RankReport
from ppll.bench.sleeping_block import BATCH, COUNT, FLOAT_BYTES, BlockTimes, SleepingBlock
from ppll.blocks.block import Block
from ppll.channels.base import SlotLayout
from ppll.connections import ends_of
from ppll.edges import Edge, Key, edges_of_line
from ppll.ending import Ending
from ppll.ends import Ends, Waiting
from ppll.fork_server import warm_up
from ppll.mesh import Mesh
from ppll.message import FEATURES, TARGETS, Kind, Message
from ppll.prefetch import Prefetcher
from ppll.replicas.adding import Adder
from ppll.simulation.line_times import BUCKET_BYTES
from ppll.status import Monitor
from ppll.worker import Worker, drain

__all__ = [
    "Chain",
    "chain_ends",
    "chain_messages",
    "run_chain",
    "run_stage",
]


@dataclass(frozen=True)
class Chain:
    """A pipeline to run.

    Attributes:
        stages: The blocks of every stage.
        num_batches: Training messages that pass through all of them.
        capacity: Slots of a channel.
        keeps_times: Whether every rank reports when it had learned from each message.
        footprint_steps: Steps after which every rank looks at its memory.
        timeout_s: How long all of it may take.
        replicas: Processes of every stage; without, one each.
    """

    stages: tuple[tuple[BlockTimes, ...], ...]
    num_batches: int
    capacity: int = 4
    keeps_times: bool = False
    footprint_steps: tuple[int, ...] = ()
    timeout_s: float = 600.0
    replicas: tuple[int, ...] = ()

    @classmethod
    def even(cls, num_stages: int, block: BlockTimes, num_batches: int, **options: Any) -> Chain:
        """A pipeline with the same block in every process."""
        return cls(((block,),) * num_stages, num_batches, **options)

    @property
    def mesh(self) -> Mesh:
        """All processes."""
        return Mesh(self.replicas) if self.replicas else Mesh.of(len(self.stages))

    def layout(self, stage: int) -> SlotLayout:
        """What a slot before a stage, not the first, must hold."""
        before, own = self.mesh.replicas[stage - 1 : stage + 1]
        samples = -(-BATCH // max(before, own))
        payload_bytes = samples * self.row_bytes(stage - 1)
        return SlotLayout({FEATURES: payload_bytes, TARGETS: samples * torch.int64.itemsize})

    def row_bytes(self, stage: int) -> int:
        """What a stage sends for every sample."""
        samples = BATCH // self.mesh.replicas[stage]
        return -(-self.stages[stage][-1].payload_bytes // (samples * FLOAT_BYTES)) * FLOAT_BYTES

    def edges(self) -> Iterator[Edge]:
        """All channels, in an order in which every process can join its own."""
        for stage, blocks in enumerate(self.stages):
            if stage:
                yield from edges_between(self.mesh, stage, self.layout(stage), self.capacity)
            bucket_bytes = min(BUCKET_BYTES, max(b.gradient_bytes for b in blocks))
            yield from edges_of_line(self.mesh.ranks(stage), max(COUNT.nbytes, bucket_bytes))


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
            for rank in range(chain.mesh.size):
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
        ends = join_shared(list(chain.edges()), rank, folder, secret, stack)
        result.send(run_stage(chain, rank, chain_ends(chain, rank, ends, stack)))


def chain_ends(chain: Chain, rank: int, ends: Mapping[Key, Any], stack: ExitStack) -> Ends:
    """What one process receives from and sends to, from its ends of all channels."""

    def loader() -> Prefetcher:
        messages = chain_messages(chain, chain.mesh.replica(rank))
        prefetcher = Prefetcher(messages, chain.capacity)
        stack.callback(prefetcher.close)
        return prefetcher

    return ends_of(ends, chain.mesh, rank, Ending(), loader)


def run_stage(chain: Chain, rank: int, ends: Ends) -> RankReport:
    """Run one process to its end, whatever its ends are.

    Args:
        chain: The pipeline.
        rank: Which of its processes.
        ends: Where messages come from and go to; the caller closes them.
    """
    report, monitor, sleeper = RankReport(), Monitor(), Sleeper()
    if chain.footprint_steps:
        Footprint.now(0)  # the first look takes memory of its own
    adder = None if ends.line is None else Adder(ends.line.add_up, monitor)
    stage = chain.mesh.stage(rank)
    blocks = [
        SleepingBlock(i, times, chain.row_bytes(stage), sleeper, adder)
        for i, times in enumerate(chain.stages[stage])
    ]
    worker = _Observed(chain, report, cast(list[Block], blocks), ends, monitor=monitor)
    drain(worker.run())
    if adder is not None:
        adder.close()
    report.busy_fraction = monitor.busy_fraction()
    report.activity_s = {a.name.lower(): s for a, s in monitor.seconds.items()}
    return report


def chain_messages(chain: Chain, replica: int = 0) -> Iterator[Message]:
    """What a replica of the first stage reads: training messages, then the stop."""
    num = chain.mesh.replicas[0]
    samples = BATCH * (replica + 1) // num - BATCH * replica // num
    tensors = {
        FEATURES: torch.zeros(1),
        TARGETS: torch.zeros(samples, dtype=torch.int64),
    }
    message = Message(kind=Kind.TRAIN, sequence=0, step=1, tensors=tensors, share=samples / BATCH)
    for step in range(1, chain.num_batches + 1):
        yield replace(message, sequence=step - 1, step=step)
    yield Message(kind=Kind.STOP, sequence=chain.num_batches, step=chain.num_batches)
