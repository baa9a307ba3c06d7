"""Devices emulated by sleeping, everything else real: PPLL and its rivals on any number of them.

Processes, channels or gloo, and tensors of the true size are those of training; only computation is
a sleep, so two cores are enough for many devices. Every system has an ideal: the same times on
links that take none, with nothing around them. What is measured above the ideal is the system's
runtime; what the ideals differ by is its algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from ppll.baselines import SYSTEMS as RIVALS
from ppll.baselines import EmulatedWork, Layout, run_baseline, system_named
from ppll.bench.chain import Chain, run_chain
from ppll.bench.emulated_devices import Devices
from ppll.errors import PpllError, RecipeError, unknown_name
from ppll.simulation.pipeline_work import PipelineWork
from ppll.simulation.schedules import CHUNKS_A_RANK, predict

__all__ = ["SYSTEMS", "Row", "emulate", "summary"]

SYSTEMS: Final = ("ppll", "more-blocks", "sequential", "ddp", *CHUNKS_A_RANK)
"""What can be emulated; ``more-blocks`` is PPLL with a block for each process of its replicas."""

_LOCAL: Final = ("ppll", "more-blocks", "sequential")


@dataclass(frozen=True)
class Row:
    """What a system took.

    Attributes:
        system: Its name.
        stages: Devices that it used.
        microbatches: Pieces of a batch.
        seconds_per_batch: Measured, in steady state.
        ideal_seconds_per_batch: On links that take no time, with nothing around the work.
    """

    system: str
    stages: int
    microbatches: int
    seconds_per_batch: float
    ideal_seconds_per_batch: float

    @property
    def efficiency(self) -> float:
        """Ideal to measured: 1 where the runtime costs nothing."""
        return self.ideal_seconds_per_batch / self.seconds_per_batch

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "efficiency": self.efficiency}


def emulate(
    devices: Devices,
    systems: Sequence[str],
    *,
    num_batches: int = 60,
    warm_up: int = 10,
    microbatches: Sequence[int] = (4, 8, 16),
    capacity: int = 4,
    seen: Callable[[Row], None] = lambda _: None,
    noted: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Measure systems one after the other.

    Args:
        devices: What is emulated.
        systems: Some of ``SYSTEMS``.
        num_batches: Batches that are timed.
        warm_up: Batches before them.
        microbatches: Numbers of micro-batches that every pipeline is tried with.
        capacity: Slots of PPLL's channels.
        seen: Is shown every row as it comes.
        noted: Is told what is left out, and why.

    Raises:
        RecipeError: A system is unknown, or a number cannot be.
    """
    for system in systems:
        if system not in SYSTEMS:
            raise RecipeError(unknown_name("system", system, SYSTEMS))
    if min(num_batches, capacity) < 1 or warm_up < 0:
        raise RecipeError(
            f"cannot time {num_batches} batches after {warm_up} others with capacity {capacity}: "
            f"give 1 or more, 0 or more, and 1 or more."
        )
    tries = [(s, m) for s in systems for m in (microbatches if s in CHUNKS_A_RANK else (1,))]
    notes: list[str] = []
    able = [each for each in tries if _is_able(devices, *each, notes.append)]
    if not able:
        raise RecipeError("none of these can run: " + " ".join(notes))
    for note in notes:
        noted(note)
    rows = []
    for system, count in able:
        if system in _LOCAL:
            row = _local(devices, system, num_batches, warm_up, capacity)
        else:
            row = _end_to_end(devices, system, num_batches, warm_up, count)
        seen(row)
        rows.append(row)
    return rows


def _is_able(
    devices: Devices, system: str, microbatches: int, noted: Callable[[str], None]
) -> bool:
    """Whether a system can run so; if not, why not is noted."""
    if system == "more-blocks" and not devices.more_blocks:
        noted("more-blocks is left out: it is for costs of blocks with replicas, and more layers.")
    if system in _LOCAL:
        return bool(devices.stages(system))
    try:
        Layout(system_named(system), devices.num_devices, microbatches, 1)
        work = devices.work(devices.num_devices * CHUNKS_A_RANK.get(system, 1))
        predict(system, work, devices.num_devices, microbatches)
    except PpllError as error:
        noted(f"{system} with {microbatches} micro-batches is left out: {error}")
        return False
    return True


def _local(devices: Devices, system: str, num_batches: int, warm_up: int, capacity: int) -> Row:
    stages = devices.stages(system)
    # The pipeline fills first.
    warm_up += capacity * len(stages)
    replicas = devices.replicas if system == "ppll" else ()
    chain = Chain(stages, num_batches + warm_up, capacity, keeps_times=True, replicas=replicas)
    times = run_chain(chain)[chain.mesh.rank(0, len(stages) - 1)].times_s
    seconds = (times[-1] - times[warm_up - 1]) / num_batches
    ideal = max(sum(b.forward_s + b.learn_s for b in stage) for stage in stages)
    return Row(system, chain.mesh.size, 1, seconds, ideal)


def _end_to_end(
    devices: Devices, system: str, num_batches: int, warm_up: int, microbatches: int
) -> Row:
    num = devices.num_devices
    work = devices.work(num * CHUNKS_A_RANK.get(system, 1))
    ideal = predict(system, work, num, microbatches).seconds_per_batch
    measured = run_baseline(
        system,
        _emulated(system, work, num, microbatches),
        num_ranks=num,
        num_microbatches=microbatches,
        num_batches=num_batches + warm_up,
        warm_up=warm_up,
        keeps_weights=False,
    )
    mean = sum(measured.seconds_per_batch) / len(measured.seconds_per_batch)
    return Row(system, num, microbatches, mean, ideal)


def _emulated(system: str, work: PipelineWork, num_ranks: int, microbatches: int) -> EmulatedWork:
    """The same work as sleep, of which every action has the overhead that its ideal has."""
    overhead_s = work.overhead_s * microbatches  # a row is of all micro-batches
    num_slices = Layout(system_named(system), num_ranks, microbatches, 1).num_slices
    forward_s, backward_s = work.piece_s(num_slices)
    num_backwards = 2 if RIVALS[system].splits else 1
    return EmulatedWork(
        tuple(num_slices * seconds + overhead_s for seconds in forward_s),
        tuple(num_slices * seconds + num_backwards * overhead_s for seconds in backward_s),
        work.update_s,
        tuple(int(b) for b in work.features_bytes),
        tuple(int(b) for b in work.parameter_bytes or (0,) * work.num_chunks),
    )


def summary(rows: Sequence[Row]) -> str:
    """How far PPLL is ahead of its best rival, and which part of it is what."""
    ours = next((row for row in rows if row.system == "ppll"), None)
    rivals = [row for row in rows if row.system not in _LOCAL]
    if ours is None or not rivals:
        return ""
    best = min(rivals, key=lambda row: row.seconds_per_batch)
    ideal = min(rivals, key=lambda row: row.ideal_seconds_per_batch)
    ahead = best.seconds_per_batch / ours.seconds_per_batch
    algorithm = best.ideal_seconds_per_batch / ours.ideal_seconds_per_batch
    return (
        f"PPLL is {ahead:.2f} times as fast as its best rival as measured ({_name(best)}): "
        f"{algorithm:.2f} is the algorithm (their ideals), {ahead / algorithm:.2f} its runtime on "
        f"gloo. Beside the best ideal, {_name(ideal)}'s without any runtime, PPLL as measured is "
        f"{ideal.ideal_seconds_per_batch / ours.seconds_per_batch:.2f} times as fast."
    )


def _name(row: Row) -> str:
    return (
        f"{row.system} with {row.microbatches} micro-batches"
        if row.microbatches > 1
        else row.system
    )
