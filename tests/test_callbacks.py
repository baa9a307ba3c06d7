"""What callbacks are told, in which thread, and that they cost no run."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import ppll
from ppll.callbacks import check_callbacks
from ppll.errors import UsageError, WorkerError
from ppll.testing import FAULT_VARIABLE, Fault
from tests.test_cli_looking import RECIPE, command

SECTIONS = {
    **RECIPE,
    "train": {"epochs": 2},
    "runtime": {"log_every_steps": 1},
    "checkpoint": {"every_steps": 1},
}


class Notes(ppll.Callback):
    """Keeps all that it is told."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []
        self.order: list[str] = []
        self.where: set[tuple[int, str]] = set()
        self.result: ppll.Result | None = None

    def _note(self, name: str) -> None:
        self.order.append(name)
        self.where.add((os.getpid(), threading.current_thread().name))

    def on_start(self, folder: Path, recipe: ppll.Recipe) -> None:
        assert recipe.train.epochs == 2
        assert (folder / "config.toml").is_file()
        self._note("start")

    def on_metrics(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
        self._note("row")

    def on_end(self, result: ppll.Result | None) -> None:
        self.result = result
        self._note("end")


def fit(out: Path, *callbacks: Any, stages: int = 1, **more: Any) -> ppll.Result:
    runtime = {"log_every_steps": 1, "stages": stages}
    sections = {**SECTIONS, "runtime": runtime}
    return ppll.Trainer(sections, out=out, callbacks=callbacks, **more).fit()


def written(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def in_order(rows: list[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    return sorted((r["step"], r["block"], r["kind"], r["loss"], r["accuracy"]) for r in rows)


@pytest.mark.parametrize(
    "stages", [1, pytest.param(2, marks=[pytest.mark.processes, pytest.mark.slow])]
)
def test_a_callback_is_told_every_row_once(stages: int, tmp_path: Path) -> None:
    notes = Notes()
    result = fit(tmp_path / "run", notes, stages=stages)
    assert in_order(notes.rows) == in_order(list(written(tmp_path / "run")))
    assert (notes.order[0], notes.order[-1]) == ("start", "end")
    assert notes.result == result
    assert notes.where == {(os.getpid(), "ppll-callbacks")}


def test_a_function_is_called_with_rows(tmp_path: Path) -> None:
    rows: list[Mapping[str, Any]] = []
    fit(tmp_path / "run", rows.append)
    assert in_order(rows) == in_order(list(written(tmp_path / "run")))


@pytest.mark.slow
@pytest.mark.processes
def test_after_a_restart_no_row_comes_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    monkeypatch.setenv(FAULT_VARIABLE, Fault(0, 4, generation=0).to_environment()[FAULT_VARIABLE])
    fit(tmp_path / "run", notes, stages=2, max_restarts=1)
    assert in_order(notes.rows) == in_order(list(written(tmp_path / "run")))


def test_one_callback_is_no_list_of_them() -> None:
    with pytest.raises(UsageError, match=r"callbacks is <built-in function print>: give a list"):
        check_callbacks(print)  # type: ignore[arg-type]


def test_a_resumed_run_tells_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Notes(), Notes()
    monkeypatch.setenv(FAULT_VARIABLE, Fault(0, 4).to_environment()[FAULT_VARIABLE])
    with pytest.raises(WorkerError):
        fit(tmp_path / "run", first)
    assert first.result is None
    assert first.order[-1] == "end"
    monkeypatch.delenv(FAULT_VARIABLE)
    fit(tmp_path / "run", second, resume=True)
    kept = [row for row in first.rows if row not in second.rows]
    assert in_order([*kept, *second.rows]) == in_order(list(written(tmp_path / "run")))
    assert kept
    assert second.rows


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        ("on_start", ValueError),
        ("on_metrics", ValueError),
        ("on_metrics", SystemExit),
        ("on_end", KeyboardInterrupt),
    ],
)
def test_a_callback_that_fails_costs_no_run(
    failing: str, error: type[BaseException], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise error("no network")

    bad, good = Notes(), Notes()
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(bad, failing, fail)
    with caplog.at_level(logging.ERROR):
        fit(tmp_path / "run", bad, good)
    monkeypatch.undo()
    assert f"Notes.{failing} failed; it is told no more." in caplog.text
    assert "no network" in caplog.text
    assert good.order[-1] == "end"


@pytest.mark.parametrize("given", [3, Notes, "wandb"])
def test_what_is_no_callback_is_refused(given: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"give a ppll\.Callback object, or a function"):
        ppll.Trainer(SECTIONS, out=tmp_path / "run", callbacks=[given])


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    ppll.Trainer({**SECTIONS, "track": {"tensorboard": True}}, out=run).fit()
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    found = {
        (name, event.step, round(event.value, 4))
        for name in events.Tags()["scalars"]
        if not name.startswith("busy")
        for event in events.Scalars(name)
    }
    assert found == {
        (f"{row['kind']}/{field}/block-{row['block']:02d}", row["step"], round(row[field], 4))
        for row in written(run)
        for field in ("loss", "accuracy")
    }
    assert events.Scalars("busy/stage-00")[0].step == 6


def test_tensorboard_that_is_missing_says_what_to_install(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, err = command(
        *(monkeypatch, capsys, "train", "digits-resnet", "--out", tmp_path / "run"),
        *("--set", "track.tensorboard=true"),
    )
    assert (code, "pip install 'tensorboard>=2.16'" in err) == (2, True)
    assert not (tmp_path / "run").exists()
