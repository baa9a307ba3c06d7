"""A checkpoint that is asked for by its step: in Python, on the command line, and when it lacks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import ppll
from ppll.checkpoints.checkpoint import commit, step_folder, write_block
from ppll.checkpoints.reader import TensorReader
from ppll.checkpoints.recovery import find
from ppll.errors import CheckpointError, RunFolderError, UsageError
from ppll.run_folder import RunFolder
from tests.faults import recipe
from tests.test_cli import run_here

EVERY = (0, 3, 6, 9, 12)
Asked = Callable[..., object]


@pytest.fixture
def made(tmp_path: Path) -> RunFolder:
    """A run of checkpoints of steps 0, 4 and 8, and of an unfinished one of step 12."""
    run = RunFolder.make(tmp_path / "made")
    for step in (0, 4, 8, 12):
        folder = step_folder(run.checkpoints, step)
        write_block(folder, step, 0, {"w": torch.full((2,), float(step))}, {})
        if step != 12:
            commit(folder, step, 1, {})
    return run


@pytest.mark.parametrize("step", [0, 4, 8])
def test_it_is_found_and_no_other(step: int, made: RunFolder) -> None:
    found = find(made, step=step)
    assert found.step == step
    assert found.reader.all_weights()["w"].tolist() == [step, step]


@pytest.mark.parametrize("step", [12, 5, -1])
def test_one_that_is_not_there_is_refused_with_those_that_are(step: int, made: RunFolder) -> None:
    words = rf"no checkpoint of step {step}: there are 0, 4, 8\. Name one .*checkpoint\.keep"
    with pytest.raises(RunFolderError, match=words):
        find(made, step=step)


def test_a_run_without_checkpoints_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no checkpoint of step 0: there are none"):
        find(RunFolder.make(tmp_path / "run"), step=0)


@pytest.mark.parametrize("file", ["block-00.safetensors", "manifest.json"])
def test_a_damaged_one_is_an_error_and_no_older_one_is_taken(file: str, made: RunFolder) -> None:
    (step_folder(made.checkpoints, 8) / file).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=rf"step-00000008.*{file}|{file}.* damaged"):
        find(made, step=8)
    assert find(made).step == 4


def test_one_under_another_step_s_name_is_refused(made: RunFolder) -> None:
    step_folder(made.checkpoints, 8).rename(step_folder(made.checkpoints, 9))
    with pytest.raises(CheckpointError, match="its manifest is of step 8"):
        find(made, step=9)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps with a checkpoint after every third, of which all stay."""
    out = tmp_path_factory.mktemp("steps") / "run"
    kept = recipe().with_settings(["checkpoint.every_steps=3", "checkpoint.keep=9"])
    ppll.Trainer(kept, out=out).fit()
    return out


@pytest.mark.parametrize("step", EVERY)
def test_the_network_is_that_of_the_step(step: int, run: Path, tmp_path: Path) -> None:
    saved = TensorReader(step_folder(run / "checkpoints", step)).averaged_weights()
    network = ppll.load(run, step=step)
    assert network.step == step
    assert all(
        any(torch.equal(tensor, value) for value in saved.values())
        for tensor in network.blocks.state_dict().values()
    )
    assert ppll.export(run, tmp_path / "model.safetensors", step=step) == step
    exported = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in exported.items())


@pytest.mark.parametrize("step", [0, 6])
def test_it_is_evaluated(step: int, run: Path) -> None:
    evaluated, exits = ppll.evaluate(run, step=step), ppll.evaluate_exits(run, step=step)
    assert evaluated.step == exits.step == step
    assert evaluated.exit_accuracy == exits.exit_accuracy
    assert ppll.evaluate(run).step == 12


@pytest.mark.parametrize(
    "ask",
    [
        ppll.load,
        ppll.evaluate,
        ppll.evaluate_exits,
        lambda run, **which: ppll.export(run, run / "model.safetensors", **which),
    ],
    ids=["load", "evaluate", "evaluate_exits", "export"],
)
def test_the_best_and_a_step_are_not_asked_for_together(ask: Asked, run: Path) -> None:
    with pytest.raises(UsageError, match="found both, the best and step 6: ask for one of them"):
        ask(run, best=True, step=6)
    with pytest.raises(RunFolderError, match="there are 0, 3, 6, 9, 12"):
        ask(run, step=7)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *args: run_here(monkeypatch, capsys, *args)


def test_commands_take_a_step(run: Path, tmp_path: Path, command: Any) -> None:
    for more in ([], ["--exits"]):
        code, printed, err = command("eval", str(run), *more, "--step", "6", "--json")
        assert code == 0, err
        assert json.loads(printed)["step"] == 6
    target = tmp_path / "model.safetensors"
    code, printed, err = command("export", str(run), "--to", str(target), "--step", "0")
    assert code == 0, err
    assert "the network after step 0" in printed


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--step=7"], "there are 0, 3, 6, 9, 12"),
        (["--step=-1"], "greater than or equal to 0"),
        (["--step=6", "--best"], "ask for one of them"),
        (["--step=6", "--best", "--exits"], "ask for one of them"),
    ],
)
def test_commands_refuse_a_step_that_cannot_be(
    args: list[str], words: str, run: Path, command: Any
) -> None:
    code, printed, err = command("eval", str(run), *args)
    assert (code, printed) == (2, "")
    assert words in err
