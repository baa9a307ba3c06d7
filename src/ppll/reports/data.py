"""What a run folder tells of a run, as far as it is there (no torch)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import pydantic
from pydantic import Field

from ppll.config import Recipe
from ppll.durable import open_plain
from ppll.errors import RunFolderError
from ppll.json_lines import read_rows
from ppll.run_folder import RunFolder
from ppll.tracing.advice import advise, working_cores
from ppll.tracing.files import newest_start
from ppll.tracing.lanes import Lanes, draw_lanes
from ppll.tracing.summary import Summary, summarize

__all__ = ["Measure", "MetricRow", "Outcome", "Points", "RunReport", "read_run"]

_LARGE: Final = 1e15
_Finite = Annotated[float, Field(ge=-_LARGE, le=_LARGE, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=0, le=2**62)]
Measure = Literal["loss", "accuracy"]
Points = tuple[tuple[float, float], ...]
_CONFIG: Final = pydantic.ConfigDict(frozen=True, extra="ignore")


class MetricRow(pydantic.BaseModel):
    """What one block counted up to a step: ``kind`` is "train" or a split's name."""

    model_config = _CONFIG
    kind: Annotated[str, Field(max_length=40)]
    step: _Count
    block: _Count
    loss: _Finite | None = None
    accuracy: _Share | None = None


class Outcome(pydantic.BaseModel):
    """What stands in ``result.json``; see ``ppll.result.Result``."""

    model_config = _CONFIG
    step: _Count
    train_seconds: _Finite
    samples_per_second: _Finite
    test_accuracy: _Share | None
    exit_accuracy: tuple[_Share | None, ...]
    validation_accuracy: _Share | None = None
    test_loss: pydantic.FiniteFloat | None = None
    exit_loss: tuple[pydantic.FiniteFloat | None, ...] = ()
    num_stages: _Count
    busy_fraction: tuple[_Finite, ...]
    peak_memory_bytes: tuple[_Count, ...]
    weights_sha256: str


@dataclass(frozen=True)
class RunReport:
    """One run.

    Attributes:
        name: Of its folder.
        recipe: What it was trained by.
        environment: What it ran on; empty where that is not known.
        history: A row a start.
        metrics: All blocks' numbers, ordered by step and block.
        outcome: What it came to when it last ended; none where it has not.
        summary: What its stages did with their time, where that was recorded.
        lanes: A stretch of its timeline.
        advice: What would make it faster.
    """

    name: str
    recipe: Recipe
    environment: dict[str, Any]
    history: tuple[dict[str, Any], ...]
    metrics: tuple[MetricRow, ...]
    outcome: Outcome | None
    summary: Summary | None
    lanes: Lanes | None
    advice: tuple[str, ...]

    @property
    def num_blocks(self) -> int:
        """Blocks that have told something."""
        exits = len(self.outcome.exit_accuracy) if self.outcome is not None else 0
        return max([exits, *(row.block + 1 for row in self.metrics)])

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of metrics that there are, training first."""
        return tuple(sorted({row.kind for row in self.metrics}, key=lambda k: (k != "train", k)))

    @property
    def is_past_outcome(self) -> bool:
        """Whether a later start has trained on, so that the outcome is of an earlier one."""
        found = self.outcome
        return found is not None and any(row.step > found.step for row in self.metrics)

    def curves(self, kind: str, field: Measure) -> dict[int, Points]:
        """Steps and values by block."""
        found: dict[int, list[tuple[float, float]]] = {}
        for row in self.metrics:
            value = row.loss if field == "loss" else row.accuracy
            if row.kind == kind and value is not None:
                found.setdefault(row.block, []).append((float(row.step), value))
        return {block: tuple(points) for block, points in sorted(found.items())}


def read_run(path: Path) -> RunReport:
    """All that a run folder tells.

    Raises:
        RunFolderError: It is no run folder, or its recipe or a file in it cannot be read.
    """
    folder = RunFolder.open(path)
    environment, recipe = folder.read_environment(), folder.read_recipe()
    summary, lanes, advice = _times(folder, environment, recipe)
    return RunReport(
        name=folder.path.name,
        recipe=recipe,
        environment=environment,
        history=tuple(_rows([folder.history])),
        metrics=tuple(_metrics(folder)),
        outcome=_outcome(folder.result),
        summary=summary,
        lanes=lanes,
        advice=advice,
    )


def _times(
    folder: RunFolder, environment: dict[str, Any], recipe: Recipe
) -> tuple[Summary | None, Lanes | None, tuple[str, ...]]:
    if not any(folder.traces.glob("rank-*.jsonl")):
        return None, None, ()
    start = newest_start(folder)
    summary = summarize(start)
    threads = recipe.train.threads_per_stage
    num_cores = working_cores(environment, recipe.runtime)
    advice = advise(summary, num_cores, recipe.checkpoint, threads)
    return summary, draw_lanes(start), tuple(advice)


def _metrics(folder: RunFolder) -> list[MetricRow]:
    """What all ranks have written so far; where that is gone, what was merged of it.

    It is merged when a start ends, so a run that goes on again is further than the merged file.
    """
    parts = sorted(folder.metric_parts.glob("*.jsonl"))
    found = []
    for row in _rows(parts or [folder.metrics]):
        try:
            found.append(MetricRow.model_validate(row))
        except pydantic.ValidationError:
            continue
    return sorted(found, key=lambda row: (row.step, row.block))


def _rows(paths: Iterable[Path]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            rows += read_rows(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RunFolderError(f"cannot read {path}: {error.strerror}.") from None
    return rows


def _outcome(path: Path) -> Outcome | None:
    if not path.exists():
        return None
    try:
        with open_plain(path) as file:
            tree = json.loads(file.read(), parse_constant=lambda _: math.nan)
        return Outcome.model_validate(tree)
    except (OSError, ValueError, RecursionError) as error:
        first = str(error).splitlines()[0]
        raise RunFolderError(f"cannot read {path}: {first}.") from None
