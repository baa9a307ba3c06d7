"""A run that the program itself stops before its end."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ppll
from ppll.interrupts import Interrupts, Wish
from tests.namespaces import torchrun_here
from tests.test_cli_looking import RECIPE

LONG = {
    **RECIPE,
    "data": {**RECIPE["data"], "validation": 20},
    "train": {"epochs": 16, "evaluate_every": 8},
    "checkpoint": {"keep": 100},
}
processes = pytest.mark.processes


class Stopping(ppll.Callback):
    """Stops its trainer as soon as there is a run."""

    def __init__(self) -> None:
        self.trainer: ppll.Trainer | None = None
        self.rows: list[Any] = []
        self.result: ppll.Result | None = None

    def on_start(self, *_: Any) -> None:
        assert self.trainer is not None
        self.trainer.stop()

    def on_metrics(self, row: Any) -> None:
        self.rows.append(row)

    def on_end(self, result: ppll.Result | None) -> None:
        self.result = result


def stopped(recipe: Any, out: Path, **more: Any) -> tuple[ppll.Result, Stopping]:
    callback = Stopping()
    callback.trainer = ppll.Trainer(recipe, out=out, callbacks=[callback], **more)
    return callback.trainer.fit(), callback


def on_stages(stages: int, **sections: Any) -> dict[str, Any]:
    return {**LONG, "runtime": {"stages": stages}, **sections}


@pytest.mark.parametrize("stages", [1, pytest.param(2, marks=[processes, pytest.mark.slow])])
def test_a_stopped_run_is_tested_where_it_stopped_and_goes_on_later(
    stages: int, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result, callback = stopped(on_stages(stages), out)
    assert result.stopped
    assert 0 < result.step < 32
    assert callback.result == result
    again = ppll.evaluate(out)
    assert not again.stopped  # it has not ended anything
    for name in ("step", "test_accuracy", "validation_accuracy", "exit_accuracy", "weights_sha256"):
        assert getattr(again, name) == getattr(result, name)
    told = [row["kind"] for row in callback.rows if row["step"] == result.step]
    assert sorted(told) == ["test"] * 2 + ["train"] * 2 + ["validation"] * 2
    assert json.loads((out / "result.json").read_text())["stopped"] is True

    whole = ppll.Trainer(LONG, out=tmp_path / "whole").fit()
    ended = ppll.Trainer(LONG, out=out, resume=True).fit()
    assert not ended.stopped
    assert (ended.step, ended.weights_sha256) == (whole.step, whole.weights_sha256)
    assert rows_of(out) == rows_of(tmp_path / "whole")


def rows_of(run: Path) -> list[Any]:
    """What was evaluated; how many batches a training row is of depends on the stop."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] != "train"]


def test_the_users_own_network_holds_what_was_learned_until_then(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    recipe = {name: keys for name, keys in LONG.items() if name != "model"}
    result, _ = stopped(recipe, tmp_path, model=model)
    saved: dict[str, Any] = {}
    for path in (tmp_path / f"checkpoints/step-{result.step:08d}").glob("block-*.safetensors"):
        saved |= load_file(path)
    for name, value in model.state_dict().items():
        assert any(key.endswith(name) and torch.equal(saved[key], value) for key in saved), name


@pytest.mark.slow
@processes
def test_replicas_stop_after_the_same_batch(tmp_path: Path) -> None:
    train = {"epochs": 200, "evaluate_every": 0, "replicas": 2}
    recipe = on_stages(1, train=train, model={"name": "vit", "depth": 2, "width": 12})
    result, _ = stopped(recipe, tmp_path)  # which compares the values of both
    assert result.stopped
    assert result.test_accuracy is not None


@pytest.mark.slow
@processes
def test_under_torchrun_all_processes_get_the_result(tmp_path: Path) -> None:
    script = tmp_path / "stop.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.test_stopping import on_stages, stopped\n"
        "result, callback = stopped(on_stages(2), Path(sys.argv[1]))\n"
        "print('stopped', result.stopped, result.step, result.test_accuracy)\n"
    )
    command, root = [str(script), str(tmp_path / "run")], str(Path(__file__).parents[1])
    printed, _ = torchrun_here(command, PYTHONPATH=root).communicate(timeout=120)
    lines = [line for line in printed.splitlines() if line.startswith("stopped ")]
    found = json.loads((tmp_path / "run/result.json").read_text())
    assert lines == [f"stopped True {found['step']} {found['test_accuracy']}"] * 2, printed


def test_a_stop_before_the_run_begins_is_of_no_run(tmp_path: Path) -> None:
    trainer = ppll.Trainer({**LONG, "train": {"max_steps": 2}}, out=tmp_path)
    trainer.stop()
    result = trainer.fit()
    assert (result.step, result.stopped) == (2, False)


def test_who_is_interrupted_does_not_wait_for_a_test() -> None:
    stop = threading.Event()
    with Interrupts(stop=stop) as interrupts:
        assert interrupts.wish is Wish.GO_ON
        stop.set()
        assert interrupts.wish is Wish.TEST
        signal.raise_signal(signal.SIGINT)
        assert interrupts.wish is Wish.SAVE
