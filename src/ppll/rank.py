"""One rank's life: build and load its blocks, connect to its neighbours, work, report."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ppll.block import Block
from ppll.block_modules import named_tensors
from ppll.channels.base import Inbox, SendEnd, SlotLayout
from ppll.channels.shared import SharedReceiveEnd, SharedSendEnd
from ppll.checkpoint import TensorReader, step_folder, tensor_digest
from ppll.data import load_batches
from ppll.job import Job, RankResult
from ppll.message import FEATURES, TARGETS
from ppll.metrics import MetricsFile
from ppll.models.network import initialise
from ppll.prefetch import Prefetcher
from ppll.resume import training_sections
from ppll.saving import Saver, SaveRules
from ppll.split import Blueprint
from ppll.status import Monitor
from ppll.stream import evaluation_stream, training_stream
from ppll.worker import Worker, drain

__all__ = ["run_rank"]

_CONNECT_TIMEOUT_S = 60.0


def run_rank(
    job: Job, rank: int, monitor: Monitor, ends_early: Callable[[], bool] = lambda: False
) -> RankResult:
    """Carry out one stage of a run from start to stop.

    Args:
        job: The run.
        rank: Which stage.
        monitor: Is told what the rank does.
        ends_early: Asked by the first rank after every batch; once it says yes, a checkpoint and
            the stop follow.
    """
    device = torch.device("cpu")
    torch.set_num_threads(job.recipe.train.threads_per_stage)
    blueprint = job.blueprint()
    with ExitStack() as stack:
        inbox, outbox = _connect(job, rank, blueprint, ends_early, stack)
        blocks = build_blocks(job, rank, blueprint, device)
        saver = metrics = None
        if not job.evaluates_only:
            saver = _saver(job, rank, blueprint.num_blocks)
            metrics = MetricsFile(job.folder.metric_parts / f"rank-{rank}.jsonl")
            # A rank that fails must say so at once.
            stack.callback(saver.close, wait=job.sockets is None)
            stack.callback(metrics.close)
        worker = Worker(
            blocks,
            inbox,
            outbox,
            saver=saver,
            metrics=metrics,
            monitor=monitor,
            log_every_steps=job.recipe.runtime.log_every_steps,
        )
        drain(worker.run())
        return _result(worker, device)


def build_blocks(job: Job, rank: int, blueprint: Blueprint, device: torch.device) -> list[Block]:
    """The rank's blocks with the values of the checkpoint that the run starts from."""
    indices = blueprint.stage_blocks(job.num_stages)[rank]
    blocks = [blueprint.build_block(index, device) for index in indices]
    reader = TensorReader(step_folder(job.folder.checkpoints, job.start_step))
    for block in blocks:
        _load_block(job, block, reader)
    return blocks


def _load_block(job: Job, block: Block, reader: TensorReader) -> None:
    tensors: dict[str, Tensor] = {}
    for prefix, module in block.modules.named():
        if prefix in job.fresh:
            initialise(module, prefix, job.recipe.train.seed)
            tensors |= named_tensors(prefix, module)
    names = {name for name, _ in block.modules.named_tensors()} - tensors.keys()
    parameters = {name for name, _ in block.modules.named_parameters()} & names
    state = reader.optimizer_state(parameters) if job.keeps_optimizer else {}
    block.load(tensors | reader.weights(names), state)


def _connect(
    job: Job,
    rank: int,
    blueprint: Blueprint,
    ends_early: Callable[[], bool],
    stack: ExitStack,
) -> tuple[Inbox, SendEnd | None]:
    """Listen before connecting, so that neighbours may come up in any order."""
    capacity = job.recipe.runtime.capacity
    receiver = None
    if rank > 0:
        first_block = blueprint.stage_blocks(job.num_stages)[rank].start
        layout = slot_layout(job, blueprint, first_block)
        receiver = SharedReceiveEnd.listen(_socket(job, rank), layout, capacity, job.secret)
        stack.callback(receiver.close)
    outbox = None
    if rank + 1 < job.num_stages:
        outbox = SharedSendEnd.connect(_socket(job, rank + 1), job.secret, _CONNECT_TIMEOUT_S)
        stack.callback(outbox.close)
    if receiver is not None:
        receiver.accept(_CONNECT_TIMEOUT_S)
        return receiver, outbox
    loader = _loader(job, blueprint, ends_early)
    stack.callback(loader.close)
    return loader, outbox


def _socket(job: Job, rank: int) -> Path:
    assert job.sockets is not None
    return job.sockets / f"features-{rank}"


def _loader(job: Job, blueprint: Blueprint, ends_early: Callable[[], bool]) -> Prefetcher:
    batches = load_batches(
        job.recipe.data,
        seed=job.recipe.train.seed,
        eval_batch_size=job.recipe.eval_batch_size,
        user_data=job.folder.user_data if job.user_data else None,
        fields=blueprint.method.fields,
    )
    if job.evaluates_only:
        stream = evaluation_stream(batches, job.start_step)
    else:
        stream = training_stream(
            batches,
            job.recipe,
            blueprint.num_steps,
            start_step=job.start_step,
            ends_early=ends_early,
        )
    return Prefetcher(stream, capacity=job.recipe.runtime.capacity)


def slot_layout(job: Job, blueprint: Blueprint, block_index: int) -> SlotLayout:
    """How large the fields of a message are that enters a block."""
    num = max(job.recipe.message_size, job.recipe.eval_batch_size)
    shape = blueprint.input_shape(block_index)
    float_bytes = torch.float32.itemsize
    field_bytes = {
        FEATURES: num * torch.Size(shape).numel() * float_bytes,
        TARGETS: num * torch.int64.itemsize,
    }
    for name in blueprint.method.fields:
        # A field of the loader's is a copy of the input in bytes or less.
        field_bytes[name] = num * torch.Size(job.facts.input_shape).numel() * float_bytes
    return SlotLayout(field_bytes)


def _saver(job: Job, rank: int, num_blocks: int) -> Saver:
    rules = SaveRules(
        job.folder.checkpoints,
        num_blocks,
        training_sections(job.recipe),
        job.recipe.checkpoint.keep,
        claim=job.claim,
        passes_over_nonfinite=job.recipe.train.on_nonfinite == "ignore",
        before_write=_write_fault(job, rank),
    )
    return Saver(rules, commits=rank == job.num_stages - 1, saved_step=job.start_step)


def _write_fault(job: Job, rank: int) -> Callable[[int], None] | None:
    if job.fault is None:
        return None
    return partial(job.fault.strike_at_write, rank, job.generation)


def _result(worker: Worker, device: torch.device) -> RankResult:
    last = worker.last_message
    assert last is not None
    tensors = [item for block in worker.blocks for item in block.modules.named_tensors()]
    return RankResult(
        step=last.step,
        samples=worker.monitor.num_samples,
        started_s=worker.monitor.started_s,
        seconds=worker.monitor.elapsed_s,
        evaluation_s=worker.evaluation_s,
        busy_fraction=worker.monitor.busy_fraction(),
        peak_memory_bytes=_peak_memory_bytes(device),
        exits={
            split: {index: tally.accuracy for index, tally in tallies.items()}
            for split, tallies in worker.exits.items()
        },
        digests=tuple(tensor_digest(name, tensor) for name, tensor in tensors),
    )


def _peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process has had: on a GPU the device's, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
