"""Real training on the processors that there are: PPLL and its rivals on the same batches.

All systems train the recipe's network, in processes of their own, with the recipe's threads each.
They take turns, so a ratio is taken within a repeat and what else the machine does meets all alike.
PPLL goes through ``ppll.Trainer`` and has the recipe's cuts; rivals go through ``run_baseline`` and
have cuts that are balanced for training end to end. No epoch ends in a short batch.

Rates are those of steady state. A rival's counts from its last rank's last update of the warm-up to
its last rank's last update; PPLL's is the last stage's between two times at which it was at the
same point of its loop. Status pages hold the exact time since when a stage is at what it does; the
launcher reads them twenty times a second, and the two readings farthest apart are taken. Besides
the warm-up come as many batches before them as channels hold, while the pipeline fills, and as many
after them, since then the stages in front have nothing left to do.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ppll.baselines import SYSTEMS as RIVALS
from ppll.bench.entrants import Entrant, Race, Timing
from ppll.config import Recipe
from ppll.costs import Costs
from ppll.errors import RecipeError, unknown_name

__all__ = ["SYSTEMS", "CompareRow", "compare", "summary"]

SYSTEMS: Final = ("ppll", "sequential", *RIVALS)
"""What can be compared; ``sequential`` is PPLL on one stage."""

_LOCAL: Final = ("ppll", "sequential")


@dataclass(frozen=True)
class CompareRow:
    """What a system came to.

    Attributes:
        system: Its name.
        stages: Processes that train.
        microbatches: Pieces that a batch travels in; ``train.accumulate`` of PPLL.
        rates: Samples a second in steady state, of every repeat.
        speedups: The same by that of one stage in the same repeat; empty where that was not run.
        peak_memory_bytes: Of each rank, the most memory that training took in any repeat; nothing
            is saved before that.
        base_memory_bytes: Of each rank, what of it was there before it built anything, if known.
        bytes_sent: Of each rank, for a batch: features and targets, or features and gradients, or
            the gradients of parameters.
        busy_fraction: Of each stage, the share of time in which it did not wait for another;
            PPLL only.
        accuracy: Share of test samples that the final output gets right after training.
        weights_sha256: Of the timed run's weights, the same on every placement; PPLL only.
    """

    system: str
    stages: int
    microbatches: int
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
        pieces = "messages" if self.system in _LOCAL else "micro-batches"
        return self.system + (f" with {self.microbatches} {pieces}" * (self.microbatches > 1))

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; of rates and speed-ups, the median, the least and the most."""
        tree = {k: v for k, v in vars(self).items() if k not in ("rates", "speedups")}
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
        accumulate: Numbers of messages a batch that PPLL is tried with, besides the recipe's.
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
    entrants = list(race.entrants(systems, microbatches, accumulate, noted))
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
    return CompareRow(
        entrant.system, entrant.stages, entrant.microbatches, (), (), entrant.bytes_sent
    )


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
    """How much PPLL gains over one stage, and how it stands beside its best rival."""
    ours = [row for row in rows if row.system == "ppll"]
    rivals = [row for row in rows if row.system not in _LOCAL and row.stages > 1]
    if not ours:
        return ""
    best = max(ours, key=_rate)
    parts = []
    if best.speedups:
        gain = statistics.median(best.speedups)
        parts.append(f"{best.name} trains {gain:.2f} times as fast as one stage.")
    if best.busy_fraction:
        busy = " ".join(f"{share:.0%}" for share in best.busy_fraction)
        parts.append(f"Its stages are busy {busy} of the time.")
    if rivals:
        rival = max(rivals, key=_rate)
        ratio = _rate(best) / _rate(rival)
        parts.append(f"It is {ratio:.2f} times as fast as the best rival, {rival.name}.")
    return " ".join(parts)


def _rate(row: CompareRow) -> float:
    return statistics.median(row.rates)
