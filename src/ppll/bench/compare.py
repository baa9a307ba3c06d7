"""Real training on the recipe's devices: PPLL and its rivals on the same batches.

All systems train the recipe's network, in processes of their own, with the recipe's threads each;
process number r computes on the device of stage r (``runtime.devices``), whatever the system. They
take turns, so a ratio is taken within a repeat and what else the machine does meets all alike.
PPLL goes through ``ppll.Trainer`` and has the recipe's cuts; rivals go through ``run_baseline`` and
have cuts that are balanced for training end to end. No epoch ends in a short batch, and nobody
saves.

Rates are those of steady state: from the last update of the warm-up to the last one that counts,
of a rival's last rank and of PPLL's last stage, both as ``BatchEnds`` has them: by the device's own
clock where that is a GPU, for which no host waits. Besides the warm-up come as many batches before
them as channels hold, while PPLL's pipeline fills; rivals have as many, so that the same batches
are timed of all. PPLL has as many after them, too, since then the stages in front have nothing left
to do.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ppll.baselines import SYSTEMS as RIVALS
from ppll.bench.entrant import LOCAL, Entrant, Timing, name_of
from ppll.bench.entrants import Race
from ppll.config import Recipe
from ppll.errors import RecipeError, unknown_name
from ppll.planning.costs import Costs

__all__ = ["SYSTEMS", "CompareRow", "compare", "summary"]

SYSTEMS: Final = (*LOCAL, *RIVALS)
"""What can be compared; ``sequential`` is PPLL on one stage."""


@dataclass(frozen=True)
class CompareRow:
    """What a system came to.

    Attributes:
        system: Its name.
        stages: Processes that train.
        microbatches: Pieces that a batch travels in; ``train.accumulate`` of PPLL.
        devices: What each rank computes on, such as ``"cpu"`` or ``"cuda:0"``.
        rates: Samples a second in steady state, of every repeat.
        speedups: The same by that of one stage in the same repeat; empty where that was not run.
        peak_memory_bytes: Of each rank, the most memory that training took in any repeat; nothing
            is saved before that. On a processor it is the process's; on a GPU what torch had
            allocated there, without its reserve and what CUDA and NCCL take.
        base_memory_bytes: Of each rank, what of it was there before it built anything, if known.
        bytes_sent: Of each rank, for a batch: features and targets, or features and gradients, or
            the gradients of parameters.
        busy_fraction: Of each stage, the share of time in which it did not wait for another;
            PPLL on processors only.
        accuracy: Share of test samples that the final output gets right after training.
        weights_sha256: Of the timed run's weights, the same on every placement; PPLL only.
    """

    system: str
    stages: int
    microbatches: int
    devices: tuple[str, ...]
    rates: tuple[float, ...]
    peak_memory_bytes: tuple[int, ...]
    bytes_sent: tuple[int, ...]
    base_memory_bytes: tuple[int, ...] | None = None
    busy_fraction: tuple[float, ...] | None = None
    speedups: tuple[float, ...] = ()
    accuracy: float | None = None
    weights_sha256: str | None = None

    @property
    def name(self) -> str:
        """The system and in how many pieces it takes a batch."""
        return name_of(self.system, self.microbatches)

    @property
    def gpus(self) -> list[str]:
        """The GPUs of the ranks that are on one, in order of rank."""
        return [device for device in self.devices if device != "cpu"]

    @property
    def is_on_gpus(self) -> bool:
        """Whether all ranks are."""
        return len(self.gpus) == self.stages

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; of rates and speed-ups also the median, the least and the most."""
        tree = dict(vars(self))
        for key, values in (("samples_per_second", self.rates), ("speedup", self.speedups)):
            tree[key] = statistics.median(values) if values else None
            tree[f"{key}_min"] = min(values, default=None)
            tree[f"{key}_max"] = max(values, default=None)
        return tree


def compare(
    recipe: Recipe,
    num_stages: int,
    systems: Sequence[str] = SYSTEMS,
    *,
    microbatches: Sequence[int] = (2, 4, 8),
    accumulate: Sequence[int] = (2, 4),
    repeats: int = 3,
    num_batches: int = 20,
    warm_up: int = 3,
    epochs: int | None = None,
    costs: Costs | None = None,
    seen: Callable[[CompareRow], None] = lambda _: None,
    noted: Callable[[str], None] = lambda _: None,
) -> list[CompareRow]:
    """Train by one system after the other.

    Args:
        recipe: ``split.blocks`` becomes ``num_stages`` if it says no more; balanced cuts are
            written out.
        num_stages: Processes of every system that can have several.
        systems: Some of ``SYSTEMS``.
        microbatches: Numbers of micro-batches that every pipeline is tried with.
        accumulate: Numbers of messages a batch that PPLL is tried with, besides one.
        repeats: How often everything is timed.
        num_batches: Batches that are timed.
        warm_up: Batches before them.
        epochs: Train by every system for so long as well, and test it.
        costs: Measured for the recipe; measured now without, if cuts are to be balanced.
        seen: Is shown a system's row, as far as it has come, whenever there is more of it.
        noted: Is told what is left out, and why.

    Raises:
        UsageError: A system is unknown, a number cannot be, or PPLL cannot train the recipe so;
            nothing was started.
        WorkerError: A system failed.
    """
    for system in systems:
        if system not in SYSTEMS:
            raise RecipeError(unknown_name("system", system, SYSTEMS))
    numbers = {"stages": num_stages, "repeats": repeats, "batches": num_batches, "warm_up": warm_up}
    for what, number in {**numbers, "epochs": epochs or 1}.items():
        if number < 1:
            raise RecipeError(f"{what} must be at least 1, found {number}.")
    race = Race.prepared(recipe, num_stages, num_batches, warm_up, costs)
    if epochs is not None and race.blueprint.facts.predicts_values:
        raise RecipeError(
            "epochs: the data has values to predict, of which there is no accuracy: leave it out."
        )
    entrants = list(race.entrants(systems, microbatches, accumulate, noted))
    if not entrants:
        raise RecipeError("nothing is left to compare: ask for other systems or micro-batches.")
    rows: list[CompareRow] = [_row(entrant) for entrant in entrants]
    for _ in range(repeats):
        timings = [entrant.timed() for entrant in entrants]
        alone = next((t.rate for e, t in zip(entrants, timings, strict=True) if _is_one(e)), None)
        for index, timing in enumerate(timings):
            rows[index] = _joined(rows[index], timing, alone)
            seen(rows[index])
    if epochs is not None:
        for index, entrant in enumerate(entrants):
            rows[index] = replace(rows[index], accuracy=entrant.accuracy(epochs))
            seen(rows[index])
    return rows


def _is_one(entrant: Entrant) -> bool:
    return entrant.system == "sequential" and entrant.microbatches == 1


def _row(entrant: Entrant) -> CompareRow:
    of = (entrant.system, entrant.stages, entrant.microbatches, entrant.devices)
    return CompareRow(*of, (), (), entrant.bytes_sent)


def _joined(row: CompareRow, timing: Timing, alone: float | None) -> CompareRow:
    """A row with one repeat more; of memory, the most that was seen."""
    peak = row.peak_memory_bytes or timing.peak_memory_bytes
    return replace(
        row,
        rates=(*row.rates, timing.rate),
        speedups=(*row.speedups, timing.rate / alone) if alone else (),
        peak_memory_bytes=tuple(map(max, peak, timing.peak_memory_bytes)),
        base_memory_bytes=timing.base_memory_bytes,
        bytes_sent=timing.bytes_sent or row.bytes_sent,
        busy_fraction=timing.busy_fraction,
        weights_sha256=timing.weights_sha256,
    )


def summary(rows: Sequence[CompareRow]) -> str:
    """How PPLL stands beside one stage and its best rival, and what the numbers say of why."""
    ours = [row for row in rows if row.system == "ppll"]
    if not ours:
        return ""
    best = max(ours, key=_rate)
    rivals = [row for row in rows if row.system not in LOCAL]
    parts = [*_beside_one_stage(best), *_beside_rival(best, rivals), *_reasons(ours, rows)]
    return " ".join([*parts, *_memory(ours, rows)])


def _beside_one_stage(best: CompareRow) -> Iterator[str]:
    if not best.speedups:
        return
    gain = statistics.median(best.speedups)
    yield f"{best.name} trains {gain:.2f} times as fast as one stage{_spread(best.speedups)}."
    if (num := len(set(best.gpus))) < len(best.gpus):
        yield f"Of its stages, {len(best.gpus)} share {num} GPU(s)."
    if best.busy_fraction and best.stages > 1:
        busy = " and ".join(f"{share:.0%}" for share in best.busy_fraction)
        bound = sum(best.busy_fraction) / max(best.busy_fraction)
        yield (
            f"Its stages are busy {busy} of the time, which makes {bound:.2f} at most; "
            f"{gain / bound:.2f} of that is left where all compute at once."
        )


def _beside_rival(best: CompareRow, rivals: Sequence[CompareRow]) -> Iterator[str]:
    if not rivals:
        return
    rival = max(rivals, key=_rate)
    ratios = _ratios(best, rival)
    ahead = statistics.median(ratios)
    if min(ratios) < 1 < max(ratios):
        how = f"as fast as its best rival, {rival.name}, within the noise: {ahead:.2f} times"
    else:
        how = f"{ahead:.2f} times as fast as its best rival, {rival.name}"
    yield f"It is {how}{_spread(ratios)}."


def _reasons(ours: Sequence[CompareRow], rows: Sequence[CompareRow]) -> Iterator[str]:
    """What auxiliary networks, small pieces and schedules cost, each beside the same without."""
    plain, alone = _only(rows, "backprop"), _only(rows, "sequential")
    if plain and alone:
        share = statistics.median(_ratios(plain, alone))
        # On a GPU launches count, too.
        losses = ": auxiliary networks, less what short backward passes save"
        why = "" if alone.is_on_gpus else losses
        yield f"On one device local learning takes {share:.2f} times as long as backprop{why}."
    pipelines = [r for r in rows if r.system in RIVALS and RIVALS[r.system].kind == "pipeline"]
    if plain and pipelines:
        pipeline = max(pipelines, key=_rate)
        gain = statistics.median(_ratios(pipeline, plain))
        yield (
            f"The best pipeline, {pipeline.name}, trains {gain:.2f} times as fast as backprop on "
            f"one device: its bubble, small pieces and transport take the rest."
        )
    whole, cut = min(ours, key=_pieces), max(ours, key=_pieces)
    if cut is not whole:
        kept = statistics.median(_ratios(cut, whole))
        few, many = _pieces(whole), _pieces(cut)
        yield f"In {many} pieces a batch PPLL has {kept:.2f} of its speed in {few}."


def _memory(ours: Sequence[CompareRow], rows: Sequence[CompareRow]) -> Iterator[str]:
    """Of the fullest ranks, where a batch comes in as many pieces."""
    others = {row.microbatches: row for row in rows if row.system == "1f1b"}
    if shared := [row for row in ours if row.microbatches in others]:
        row = max(shared, key=_pieces)
        num = _pieces(row)
        own, other = (f"{max(r.peak_memory_bytes) / 2**20:,.0f} MiB" for r in (row, others[num]))
        of = " of its GPU" if row.is_on_gpus else ""
        yield f"In {num} pieces a batch its fullest rank takes {own}{of}, that of 1f1b {other}."


def _only(rows: Sequence[CompareRow], system: str) -> CompareRow | None:
    return next((row for row in rows if row.system == system), None)


def _ratios(row: CompareRow, other: CompareRow) -> list[float]:
    """Of their rates, in every repeat."""
    return [a / b for a, b in zip(row.rates, other.rates, strict=True)]


def _spread(values: Sequence[float]) -> str:
    return f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""


def _pieces(row: CompareRow) -> int:
    return row.microbatches


def _rate(row: CompareRow) -> float:
    return statistics.median(row.rates)
