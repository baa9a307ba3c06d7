"""The runs of a study as rows, and the rows as a table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from ppll.recipe_text import read_setting
from ppll.studies.outcome import Outcome, read_outcome
from ppll.studies.runs import StudyRun

__all__ = [
    "Row",
    "Spread",
    "draw_rows",
    "full_cells",
    "grid_keys",
    "has_validation",
    "markdown",
    "short_cells",
]

_CONTROL: Final = "backprop"
_MIB: Final = 2**20
_VALIDATION: Final = """ Validation: the final output's accuracy on the part of the training
set that no run learned from; what is chosen is chosen by it, not by the test set."""

Group = list[tuple[StudyRun, Outcome | None]]


@dataclass(frozen=True)
class Spread:
    """The same thing measured by several seeds.

    Attributes:
        mean: Of all.
        stdev: Sample standard deviation; none of a single one.
    """

    mean: float
    stdev: float | None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Self | None:
        """Of those that are known; none where none is."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None)


@dataclass(frozen=True)
class Row:
    """What a method reached with a recipe; of what no run has told, there is none.

    Attributes:
        recipe: What the recipe is called.
        method: The method with its options, as the study names it.
        grid: The values that the study's grid gives it, by key; the same keys in all rows.
        validation_accuracy: Share of the validation part that the final output gets right.
        test_accuracy: Share of test samples that it gets right.
        exit_accuracy: The same for every block's exit, the final output last; none for a block
            that makes no prediction.
        average_accuracy: The same for all exits averaged.
        run_gaps: Of each of ``runs``, the accuracy less that of ``backprop`` with the same seed,
            recipe and data, in points; below 0 where ``backprop`` is better, none where there is
            none.
        gap_to_backprop: Their mean.
        gap_to_backprop_stdev: Their sample standard deviation; none of a single one.
        epoch_seconds: Seconds of training an epoch takes, the median run's.
        peak_memory_bytes: Most memory of a stage in any run of which it is known.
        num_stages: Most stages of any run; without replicas, its processes.
        seeds_missing: Those that are not finished.
        runs: Those that are, by seed.
    """

    recipe: str
    method: str
    grid: dict[str, Any]
    validation_accuracy: Spread | None
    test_accuracy: Spread | None
    exit_accuracy: tuple[Spread | None, ...]
    average_accuracy: Spread | None
    run_gaps: tuple[float | None, ...]
    gap_to_backprop: float | None
    gap_to_backprop_stdev: float | None
    epoch_seconds: float | None
    peak_memory_bytes: int | None
    num_stages: int | None
    seeds_missing: tuple[int, ...]
    runs: tuple[Outcome, ...]

    @property
    def name(self) -> str:
        """Without the recipe's name."""
        return " ".join([self.method, *(f"{key}={value}" for key, value in self.grid.items())])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def draw_rows(runs: Sequence[StudyRun]) -> list[Row]:
    """One row a recipe, method and point of the grid, in the order of the study.

    Raises:
        RunFolderError: What a run wrote cannot be read.
    """
    groups: dict[tuple[str, ...], Group] = {}
    for run in runs:
        groups.setdefault(run.row, []).append((run, read_outcome(run)))
    controls = [g for g in groups.values() if g[0][0].recipe.method.name == _CONTROL]
    return [_row(group, controls) for group in groups.values()]


def _row(group: Group, controls: Sequence[Group]) -> Row:
    first = group[0][0]
    done = tuple(outcome for _, outcome in group if outcome is not None)
    seconds = [o.epoch_seconds for o in done if o.epoch_seconds is not None]
    peaks = [o.peak_memory_bytes for o in done if o.peak_memory_bytes is not None]
    gaps = _gaps(group, controls)
    gap = Spread.of(gaps)
    return Row(
        recipe=first.recipe_name,
        method=first.method,
        grid=dict(map(read_setting, first.point)),
        validation_accuracy=Spread.of(o.validation_accuracy for o in done),
        test_accuracy=Spread.of(o.test_accuracy for o in done),
        exit_accuracy=tuple(
            Spread.of(exits) for exits in zip(*(o.exit_accuracy for o in done), strict=True)
        ),
        average_accuracy=Spread.of(o.average_accuracy for o in done),
        run_gaps=gaps,
        gap_to_backprop=gap.mean if gap else None,
        gap_to_backprop_stdev=gap.stdev if gap else None,
        epoch_seconds=statistics.median(seconds) if seconds else None,
        peak_memory_bytes=max(peaks, default=None),
        num_stages=max((o.num_stages for o in done), default=None),
        seeds_missing=tuple(run.seed for run, outcome in group if outcome is None),
        runs=done,
    )


def _gaps(group: Group, controls: Sequence[Group]) -> tuple[float | None, ...]:
    """Of each finished run, the points to the control's of the same seed, which differs in the
    method only.

    Of several, which differ in options of ``backprop``, the plainest is the control. Some of these
    read the cuts, so of several equally plain ones it is that with the same.
    """
    run = group[0][0]

    def distance(control: Group) -> tuple[int, bool, bool]:
        other = control[0][0]
        unlike = other.recipe.split != run.recipe.split, other.point != run.point
        return len(other.recipe.method.options), *unlike

    able = (c for c in controls if c[0][0].setting == run.setting)
    control = min(able, key=distance, default=None)
    if control is None or run.recipe.method == control[0][0].recipe.method:
        control = []
    theirs = _by_seed(control)
    return tuple(
        100 * (ours - theirs[seed]) if seed in theirs else None
        for seed, ours in _by_seed(group).items()
    )


def _by_seed(group: Group) -> dict[int, float]:
    return {o.seed: o.test_accuracy for _, o in group if o is not None}


def grid_keys(rows: Sequence[Row]) -> list[str]:
    """What the study's grid sets."""
    return list(rows[0].grid) if rows else []


def has_validation(rows: Sequence[Row]) -> bool:
    """Whether any run kept a validation part."""
    return any(row.validation_accuracy is not None for row in rows)


def short_cells(rows: Sequence[Row]) -> list[list[str]]:
    """A line of names, then a line a row, no wider than a terminal."""
    several = len({row.recipe for row in rows}) > 1
    validated = ["validation"] if has_validation(rows) else []
    names = ["recipe", "method", *grid_keys(rows), *validated]
    names += ["accuracy", "gap", "exits", "averaged"]
    lines = [[*names, "s/epoch", "MiB", "seeds"]]
    for row in rows:
        means = [f"{100 * s.mean:.1f}" if s else "-" for s in row.exit_accuracy[:-1]]
        average = f"{100 * row.average_accuracy.mean:.2f}" if row.average_accuracy else "-"
        seconds, memory, _, seeds = _costs(row)
        finals = _finals(row, is_validated=bool(validated))
        lines.append([*finals, " ".join(means), average, seconds, memory, seeds])
    return lines if several else [line[1:] for line in lines]


def full_cells(rows: Sequence[Row]) -> list[list[str]]:
    """The same with everything."""
    num_exits = max((len(row.exit_accuracy) for row in rows), default=1) - 1
    validated = ["validation"] if has_validation(rows) else []
    exits = [f"exit {index}" for index in range(num_exits)]
    names = ["recipe", "method", *grid_keys(rows), *validated]
    names += ["final output", "to backprop", *exits, "all averaged"]
    lines = [[*names, "s/epoch", "MiB", "stages", "seeds"]]
    for row in rows:
        reached = [_percent(spread) for spread in row.exit_accuracy[:-1]]
        reached += [""] * (num_exits - len(reached))
        finals = _finals(row, is_validated=bool(validated))
        lines.append([*finals, *reached, _percent(row.average_accuracy), *_costs(row)])
    return lines


def _finals(row: Row, *, is_validated: bool) -> list[str]:
    """Which row it is, and what its final output reached."""
    named = [row.recipe, row.method, *map(str, row.grid.values())]
    validation = [_percent(row.validation_accuracy)] if is_validated else []
    return [*named, *validation, _percent(row.test_accuracy), _points(row)]


def _costs(row: Row) -> list[str]:
    seconds, memory, stages = row.epoch_seconds, row.peak_memory_bytes, row.num_stages
    num_done, num_missing = len(row.runs), len(row.seeds_missing)
    return [
        _seconds(seconds),
        "" if memory is None else f"{memory / _MIB:,.0f}",
        "" if stages is None else str(stages),
        f"{num_done} of {num_done + num_missing}" if num_missing else str(num_done),
    ]


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.2f}" if seconds < 100 else f"{seconds:,.0f}"


def _points(row: Row) -> str:
    if row.gap_to_backprop is None:
        return ""
    return f"{row.gap_to_backprop:+.2f}{_around(row.gap_to_backprop_stdev)}"


def _percent(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    stdev = None if spread.stdev is None else 100 * spread.stdev
    return f"{100 * spread.mean:.2f}{_around(stdev)}"


def _around(stdev: float | None) -> str:
    """What stands behind a mean."""
    return "" if stdev is None else f" ± {stdev:.2f}"


def markdown(rows: Sequence[Row], command: Sequence[str], environment: Mapping[str, Any]) -> str:
    """The table with what it says and where it was measured."""
    names, *lines = full_cells(rows)
    rules = ["---", "---", *["---:"] * (len(names) - 2)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in (names, rules, *lines))
    missing = [
        f"- {row.recipe} {row.name}: {', '.join(map(str, row.seeds_missing))}"
        for row in rows
        if row.seeds_missing
    ]
    left = "\n".join(["\nSeeds that are not finished:\n", *missing, ""]) if missing else ""
    validation = _VALIDATION if has_validation(rows) else ""
    machine = (
        f"{environment['processor']}, {environment['num_cores']} cores, "
        f"load {environment['load_average'][0]:.1f}, Python {environment['python']}, "
        f"torch {environment['packages']['torch']}"
    )
    return f"""{table}
{left}
Accuracy on the test set in percent, mean ± sample standard deviation over seeds: of the final
output, of every exit before it (- where a block makes no prediction), and of the mean of all exits'
probabilities. To backprop: points to `backprop` with everything else equal, mean ± sample standard
deviation of the differences by seed. s/epoch: seconds of training an epoch takes, the median run's.
MiB: most memory of a stage.{validation}

`{" ".join(command)}`

{machine}.
"""
