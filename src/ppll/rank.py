"""One rank's life: build and load its blocks, connect to its neighbours, work, report."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor

from ppll.batch_ends import BatchEnds
from ppll.blocks.averages import averages_in
from ppll.blocks.block import Block
from ppll.blocks.blueprint import Blueprint
from ppll.blocks.compiling import compiler_settings
from ppll.blocks.modules import BlockModules, named_tensors
from ppll.blocks.slow import SlowParameters
from ppll.blocks.streams import Streams, make_streams
from ppll.checkpoints.checkpoint import step_folder, tensor_digest
from ppll.checkpoints.reader import TensorReader
from ppll.checkpoints.resume import training_sections
from ppll.checkpoints.same_network import record_of
from ppll.checkpoints.saving import Saver, SaveRules
from ppll.connections import connect
from ppll.devices import device_of, peak_memory_bytes
from ppll.errors import ModelError
from ppll.interrupts import Wish
from ppll.job import Job, RankResult
from ppll.metrics import MetricsFile
from ppll.models.copies import source_names
from ppll.models.initialising import initialise
from ppll.models.names import qualified
from ppll.numerics import set_numerics
from ppll.replicas.adding import Adder
from ppll.replicas.exchange import Exchange
from ppll.replicas.line import Line
from ppll.status import Monitor
from ppll.tracing.spans import Tracer, Windows
from ppll.worker import Worker, drain
from ppll.world import World

__all__ = ["run_rank"]


def run_rank(
    job: Job,
    rank: int,
    monitor: Monitor,
    wish: Callable[[], int] = lambda: Wish.GO_ON,
    world: World | None = None,
    tell: Callable[[BaseException], None] = lambda _: None,
) -> RankResult:
    """Carry out one stage, or what a replica does of it, from start to stop.

    Args:
        job: The run.
        rank: Which.
        monitor: Is told what the rank does.
        wish: Asked by the first rank after every batch what the run is to do.
        world: All processes, where they may be on several hosts.
        tell: Is told what goes wrong before the rank lets go of anything: that may take a while,
            and the neighbours see it and ask why.
    """
    device = device_of(job.recipe.runtime, rank)
    set_numerics(job.recipe.train, device)
    others = _bytes_of_others(device)
    blueprint = job.blueprint()
    with ExitStack() as stack, _told(tell):
        if job.recipe.train.compile:
            stack.enter_context(compiler_settings())
        ends = connect(job, rank, blueprint, wish, stack, world)
        num_blocks = len(blueprint.stage_blocks(job.num_stages)[job.mesh.stage(rank)])
        streams = make_streams(job.recipe, device, num_blocks)
        blocks = build_blocks(job, rank, blueprint, device, streams)
        if ends.line is not None:
            adder = Adder(ends.line.add_up, monitor)
            stack.callback(adder.close)
            _join_replicas(job, rank, blocks, ends.line, adder, stack)
        _load(job, blueprint, blocks)
        saver = metrics = None
        if not job.evaluates_only and not job.mesh.replica(rank):
            saver = _saver(job, rank, blueprint.num_blocks)
            metrics = MetricsFile(job.folder.metric_parts / f"rank-{rank}.jsonl")
            # A rank that fails must say so at once.
            stack.callback(saver.close, wait=job.sockets is None)
            stack.callback(metrics.close)
        if not job.evaluates_only:
            _record(job, rank, blueprint, monitor, stack)
        notes_ends = job.recipe.track.batch_ends and not job.evaluates_only
        batch_ends = BatchEnds(device) if notes_ends else None
        worker = Worker(
            blocks,
            ends,
            saver=saver,
            metrics=metrics,
            monitor=monitor,
            log_every_steps=job.recipe.runtime.log_every_steps,
            streams=streams,
            batch_ends=batch_ends,
        )
        with streams.home():
            drain(worker.run())
            if batch_ends is not None:
                batch_ends.write(job.folder.batch_ends(rank), job.start_step)
        return _result(worker, device, others)


@contextmanager
def _told(tell: Callable[[BaseException], None]) -> Iterator[None]:
    """What goes wrong inside is told at once."""
    try:
        yield
    except BaseException as error:
        tell(error)
        raise


def _bytes_of_others(device: torch.device) -> int:
    """What this process has of a GPU already: runs before this one may keep some, as cuBLAS does
    for every stream. It is no part of the run's peak memory."""
    if device.type != "cuda":
        return 0
    gc.collect()  # Recorded blocks refer to themselves.
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def build_blocks(
    job: Job, rank: int, blueprint: Blueprint, device: torch.device, streams: Streams
) -> list[Block]:
    """The rank's blocks, still without values."""
    indices = blueprint.stage_blocks(job.num_stages)[job.mesh.stage(rank)]
    return [
        blueprint.build_block(index, device, streams.recorder(position))
        for position, index in enumerate(indices)
    ]


def _join_replicas(
    job: Job, rank: int, blocks: Sequence[Block], line: Line, adder: Adder, stack: ExitStack
) -> None:
    replica = job.mesh.replica(rank)
    if job.recipe.runtime.sharding == "none":
        for block in blocks:
            block.join(Exchange(block.modules, adder, is_first=replica == 0), replica)
        return
    # Its import takes a while.
    from ppll.replicas.sharding import Replicas, Shares, replica_mesh

    mesh = stack.enter_context(replica_mesh(replica, job.mesh.num_replicas(rank)))
    replicas = Replicas(line, adder, mesh)
    skips = job.recipe.train.on_nonfinite == "skip"
    for block in blocks:
        block.join(Shares(block.modules, replicas, may_leave_out=skips), replica)


def _load(job: Job, blueprint: Blueprint, blocks: Sequence[Block]) -> None:
    """The values of the checkpoint that the run starts from."""
    reader = TensorReader(step_folder(job.folder.checkpoints, job.start_step))
    for block in blocks:
        _load_block(job, blueprint, block, reader)


def _load_block(job: Job, blueprint: Blueprint, block: Block, reader: TensorReader) -> None:
    tensors: dict[str, Tensor] = {}
    fresh = {prefix for prefix, _ in block.modules.named()} & job.fresh
    for prefix, module in _twin(blueprint, block).named() if fresh else ():
        if prefix in fresh:
            given = reader.weights(source_names(prefix, module).values())
            initialise(module, prefix, job.recipe.train.seed, given)
            tensors |= named_tensors(prefix, module)
    names = {name for name, _ in block.modules.named_tensors()} - tensors.keys()
    parameters = {name for name, _ in block.modules.named_parameters()} & names
    state = reader.optimizer_state({*parameters, block.modules.auxiliary_name})
    in_flight = state.pop(block.modules.slow_name, None)
    kept = state if job.keeps_optimizer else averages_in(state)
    block.load(tensors | reader.weights(names), kept)
    if block.method.slow_from is not None and not block.site.is_last:
        copies = _copies(job, blueprint, block, reader, in_flight)
        block.slow = SlowParameters(copies.to(block.device))


def _twin(blueprint: Blueprint, block: Block) -> BlockModules:
    """The same modules where first values are drawn: whole and on the processor."""
    return blueprint.build_modules(block.index, torch.device("cpu"))


def _copies(
    job: Job, blueprint: Blueprint, block: Block, reader: TensorReader, in_flight: Tensor | None
) -> Tensor:
    """What is on its way to a block: as it was saved, or the other layer's values at the start."""
    layer = blueprint.layer_read_by(block.index)
    if layer.path in job.fresh:
        raise ModelError(f"{layer.name} starts afresh, but a block before it reads its values.")
    names = [qualified(layer.path, name) for name, _ in layer.module.named_parameters()]
    saved = reader.weights(names)
    first = torch.cat([saved[name].flatten() for name in names])
    expected = (block.method.lag, len(first))
    if in_flight is not None and tuple(in_flight.shape) == expected:
        return in_flight
    return first.expand(expected).clone()


def _saver(job: Job, rank: int, num_blocks: int) -> Saver:
    commits = rank == job.num_stages - 1
    rules = SaveRules(
        job.folder.checkpoints,
        num_blocks,
        training_sections(job.recipe),
        job.recipe.checkpoint.num_newest,
        job.recipe.checkpoint.keeps_best,
        # To ask for versions takes a process as long as a step.
        network=record_of(job.layers, job.facts) if job.layers and commits else None,
        claim=job.claim,
        passes_over_nonfinite=job.recipe.train.on_nonfinite == "ignore",
        before_write=_write_fault(job, rank),
        block_by_block=job.recipe.runtime.sharding != "none",
    )
    return Saver(rules, commits=commits, saved_step=job.start_step)


def _record(job: Job, rank: int, blueprint: Blueprint, monitor: Monitor, stack: ExitStack) -> None:
    """Let what the rank does be written down, if the recipe wants it."""
    num_recorded = job.recipe.track.trace_steps
    if not num_recorded:
        return
    tracer = Tracer(
        job.folder.traces / f"rank-{rank}.jsonl",
        rank=rank,
        stage=job.mesh.stage(rank),
        place=job.mesh.place(rank),
        replica=job.mesh.replica(rank),
        blocks=blueprint.stage_blocks(job.num_stages)[job.mesh.stage(rank)],
        windows=Windows.of(num_recorded, job.start_step, blueprint.num_steps),
        capacity=job.recipe.runtime.capacity,
        start=job.claim.token if job.claim is not None else "",
    )
    stack.callback(tracer.close)
    monitor.recorder = tracer


def _write_fault(job: Job, rank: int) -> Callable[[int], None] | None:
    if job.fault is None:
        return None
    return partial(job.fault.strike_at_write, rank, job.generation)


def _result(worker: Worker, device: torch.device, others: int) -> RankResult:
    last = worker.last_message
    assert last is not None
    tensors = [
        item
        for block in worker.blocks
        for item in (*block.named_tensors(), *block.named_averages())
    ]
    return RankResult(
        step=last.step,
        samples=worker.monitor.num_samples,
        started_s=worker.monitor.started_s,
        seconds=worker.monitor.elapsed_s,
        evaluation_s=worker.evaluation_s,
        busy_fraction=worker.monitor.busy_fraction(),
        peak_memory_bytes=max(0, peak_memory_bytes(device) - others),
        training_peak_bytes=max(0, worker.monitor.training_peak_bytes - others),
        exits=worker.exits,
        digests=tuple(tensor_digest(name, tensor) for name, tensor in tensors),
    )
