"""docs/run-folder.md names every file that a run writes and every field in them, and no other."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import ppll
from ppll.data_facts import DataFacts
from ppll.environment import describe_environment
from ppll.studies.outcome import Outcome
from ppll.studies.table import Row
from tests.test_cli_looking import RECIPE

PAGE = (Path(__file__).parents[1] / "docs" / "run-folder.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """What stands below a heading."""
    return PAGE.split(f"\n## `{title}`\n")[1].partition("\n## ")[0]


def named(title: str, table: int = 0) -> list[str]:
    """What the first column of a section's table names, in order."""
    tables = re.findall(r"(?:^\|.*\n)+", section(title), flags=re.MULTILINE)
    cells = [line.split("|")[1] for line in tables[table].splitlines()[2:]]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def fields_of(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of arrays of its own, as much of what may be written as one process writes."""
    out = tmp_path_factory.mktemp("runs") / "run"
    images = torch.zeros(60, 1, 8, 8, dtype=torch.uint8).numpy()
    targets = (torch.arange(60) % 10).numpy()
    data = ppll.Dataset.from_arrays(train=(images, targets), test=(images[:20], targets[:20]))
    recipe = {
        **{key: value for key, value in RECIPE.items() if key != "data"},
        "data": {"batch_size": 20, "validation": 20},
        "checkpoint": {"keep": "best"},
        "track": {"batch_ends": True},
    }
    ppll.Trainer(recipe, data=data, out=out).fit()
    return out


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_file_of_a_run_is_named(run: Path) -> None:
    text = PAGE.partition("\n## ")[0]
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert "data.safetensors" in files
    shown = {re.sub(r"\d+", "N", re.sub(r"step-\d+", "step-XXXXXXXX", name)) for name in files}
    shown = {name.replace("block-N", "block-NN") for name in shown}
    assert {n for n in shown if f"`{n}`" not in text and f"`{Path(n).name}`" not in text} == set()


def test_every_field_of_metrics_is_named(run: Path) -> None:
    rows = rows_of(run / "metrics.jsonl")
    assert named("metrics.jsonl") == [*rows[0], "skipped"]
    assert {row["kind"] for row in rows} == {"train", "validation", "test"}


def test_every_field_of_a_result_is_named(run: Path) -> None:
    written = json.loads((run / "result.json").read_text())
    assert named("result.json") == list(written)


def test_every_field_of_a_start_is_named(run: Path) -> None:
    (start,) = rows_of(run / "history.jsonl")
    assert named("history.jsonl") == list(start)


def test_every_field_of_the_data_is_named() -> None:
    assert set(named("data.json")) == fields_of(DataFacts)


def test_every_field_of_the_environment_is_named() -> None:
    own = {f"{what}_sha256" for what in ("data", "model", "method", "loss", "optimizer")}
    assert set(named("environment.json")) == {*describe_environment(), *own}


def test_every_field_of_a_study_is_named() -> None:
    assert set(named("study.json", 0)) == fields_of(Row)
    assert set(named("study.json", 1)) == fields_of(Outcome)
