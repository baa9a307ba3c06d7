"""``checkpoint.keep = "best"``: which checkpoint stays, what breaks off, and who asks for it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

import ppll
from ppll.checkpoints.checkpoint import (
    commit,
    read_validation,
    step_folder,
    write_block,
    write_validation,
)
from ppll.checkpoints.manifest import ValidationRecord
from ppll.checkpoints.reader import TensorReader
from ppll.checkpoints.recovery import best_validation, find, prune
from ppll.checkpoints.resume import training_sections
from ppll.config import Recipe
from ppll.errors import CheckpointError, RunFolderError, WorkerError
from ppll.run_folder import RunFolder
from ppll.testing import Fault
from tests.faults import injected, recipe
from tests.test_resuming import OWN, own_data, own_model
from tests.thinning import slow_but

ACCURACIES = {4: 0.25, 8: 0.75, 12: 0.5, 16: 0.75, 20: 0.0}


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of the default recipe without checkpoints."""
    folder = RunFolder.make(tmp_path / "made")
    folder.config.write_text(Recipe().to_toml())
    return folder


def write(run: RunFolder, step: int, accuracy: float | None = None, *settings: str) -> Path:
    """A checkpoint that is made under other settings, where there are some."""
    folder = step_folder(run.checkpoints, step)
    write_block(folder, step, 0, {"w": torch.full((2,), float(step))}, {})
    commit(folder, step, 1, training_sections(Recipe().with_settings(settings)))
    if accuracy is not None:
        write_validation(folder, ValidationRecord(step=step, accuracy=accuracy))
    return folder


def test_where_there_is_no_accuracy_the_least_loss_is_best(run: RunFolder) -> None:
    """Of equal ones the first; a loss that is not finite is worse than any."""
    for step, loss in enumerate((math.nan, 2.0, 0.5, 0.5, math.inf, 1.0), start=1):
        write_validation(write(run, step), ValidationRecord.of(step, math.nan, loss))
    best = best_validation(run)
    assert best is not None
    assert (best.step, best.accuracy, best.loss) == (3, None, 0.5)


def test_a_loss_says_nothing_beside_an_accuracy() -> None:
    assert ValidationRecord.of(3, 0.5, 0.1) == ValidationRecord(step=3, accuracy=0.5)


def steps(checkpoints: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*"))


def test_the_best_one_stays_and_of_equal_ones_the_first(run: RunFolder) -> None:
    write(run, 0)
    left = []
    for step, accuracy in ACCURACIES.items():
        write(run, step, accuracy)
        prune(run.checkpoints, 2, best_of=training_sections(Recipe()))
        left.append(steps(run.checkpoints))
    assert left == [[0, 4], [0, 4, 8], [0, 8, 12], [0, 8, 12, 16], [0, 8, 16, 20]]
    assert find(run).step == 20
    assert find(run, best=True).step == 8


def test_what_was_not_evaluated_is_not_the_best(run: RunFolder) -> None:
    write(run, 3)
    assert best_validation(run) is None
    with pytest.raises(RunFolderError, match=r"train with checkpoint\.keep = \"best\""):
        find(run, best=True)
    folder = write(run, 4, 0.5)
    (folder / "manifest.json").unlink()
    assert best_validation(run) is None


@pytest.mark.parametrize(
    ("setting", "best"),
    [
        ("data.validation=0.2", 8),
        ("data.train_limit=50", 8),
        ("data.num_train=50", 8),
        ("train.ema=0.9", 8),
        ("data.batch_size=7", 4),
        ("data.test_limit=7", 4),
        ("data.flip=true", 4),
        ("data.root=there", 4),
        ("optimizer.lr=1", 4),
    ],
)
def test_only_accuracies_of_the_same_samples_are_compared(
    setting: str, best: int, run: RunFolder
) -> None:
    write(run, 4, 0.75, setting)
    write(run, 8, 0.5)
    write(run, 12, 0.25)
    assert find(run, best=True).step == best
    prune(run.checkpoints, 1, best_of=training_sections(Recipe()))
    assert steps(run.checkpoints) == [best, 12]


def test_where_nothing_can_be_compared_there_is_no_best(run: RunFolder) -> None:
    write(run, 4, 0.75, "data.validation=5")
    with pytest.raises(RunFolderError, match=r"none by the data and the train\.ema that the run"):
        find(run, best=True)


@pytest.mark.parametrize(
    "content", ["", "{}", '{"step": 9, "accuracy": 1}', '{"step": 4, "accuracy": 2}']
)
def test_a_damaged_record_counts_as_none(run: RunFolder, content: str) -> None:
    folder = write(run, 4, 0.5)
    (folder / "validation.json").write_text(content)
    assert read_validation(folder) is None
    assert find(run).step == 4


@pytest.mark.parametrize("file", ["block-00.safetensors", "manifest.json"])
def test_a_best_one_that_is_damaged_is_refused(run: RunFolder, file: str) -> None:
    folder = write(run, 4, 0.5)
    write(run, 8, 0.25)
    (folder / file).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"damaged|cannot read"):
        find(run, best=True)


def fit(out: Path, *settings: str, allow_change: tuple[str, ...] = (), **how: bool) -> ppll.Result:
    base = recipe().with_settings(
        ["checkpoint.keep=best", "train.epochs=5", "schedule.name=constant", *settings]
    )
    return ppll.Trainer(base, out=out, allow_change=allow_change, **how).fit()


def validations(run: Path) -> dict[int, float]:
    """Accuracy of the final output by step, as the metrics have it."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["accuracy"] for r in rows if (r["kind"], r["block"]) == ("validation", 3)}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five epochs of four steps, a checkpoint also after every third step."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    fit(run)
    return run


def is_best(run: Path) -> tuple[int, float]:
    """The first of the best evaluations."""
    found = validations(run)
    best = max(found.values())
    return min(step for step, accuracy in found.items() if accuracy == best), best


def test_a_run_keeps_the_best_and_names_it(unbroken: Path) -> None:
    result = json.loads((unbroken / "result.json").read_text())
    step, accuracy = is_best(unbroken)
    assert len(validations(unbroken)) == 5
    assert (result["best_step"], result["best_validation_accuracy"]) == (step, accuracy)
    assert 0 < step < 18  # else it would be among the newest
    assert steps(unbroken / "checkpoints") == [0, step, 18, 20]


def test_it_changes_nothing_else(unbroken: Path, tmp_path: Path) -> None:
    plain = fit(tmp_path / "run", "checkpoint.keep=2")
    result = json.loads((unbroken / "result.json").read_text())
    assert plain.weights_sha256 == result["weights_sha256"]
    assert plain.best_step is plain.best_validation_accuracy is None
    assert validations(tmp_path / "run") == validations(unbroken)


# At the first step after a checkpoint, within an epoch, and while the validation part is evaluated.
@pytest.mark.parametrize(
    ("step", "activity"),
    slow_but(
        [(9, "LEARN")],
        [(9, "LEARN"), (18, "LEARN"), (16, "EVALUATE"), (20, "EVALUATE")],
    ),
)
def test_a_broken_run_ends_with_the_same_one(
    step: int, activity: str, unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with injected(Fault(0, step, activity)), pytest.raises(WorkerError):
        fit(run)
    fit(run, resume=True)
    results = [json.loads((r / "result.json").read_text()) for r in (run, unbroken)]
    keys = ("best_step", "best_validation_accuracy", "weights_sha256")
    assert [results[0][key] for key in keys] == [results[1][key] for key in keys]
    assert steps(run / "checkpoints") == steps(unbroken / "checkpoints")


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("method", slow_but(["dgl"], ["dgl", "man"]))
def test_the_last_of_several_ranks_decides(method: str, tmp_path: Path) -> None:
    setting = f"method.name={method}"
    one = fit(tmp_path / "one", setting)
    four = fit(tmp_path / "four", setting, "runtime.stages=4")
    assert one.best_step == four.best_step
    assert one.best_validation_accuracy == four.best_validation_accuracy
    assert {0, 20, one.best_step} <= set(steps(tmp_path / "four" / "checkpoints"))


@pytest.mark.parametrize("settings", [(), pytest.param(("train.ema=0.8",), marks=pytest.mark.slow)])
def test_the_best_one_can_be_asked_for(
    settings: tuple[str, ...], unbroken: Path, tmp_path: Path
) -> None:
    run = unbroken
    if settings:
        run = tmp_path / "run"
        fit(run, *settings)
    step, accuracy = is_best(run)
    evaluated = ppll.evaluate(run, best=True)
    assert (evaluated.step, evaluated.validation_accuracy) == (step, accuracy)
    assert ppll.evaluate(run).step == 20
    assert ppll.load(run, best=True).step == step
    assert ppll.load(run).step == 20
    assert ppll.export(run, tmp_path / "best.safetensors", best=True) == step
    exported = safetensors.torch.load_file(tmp_path / "best.safetensors")
    saved = TensorReader(step_folder(run / "checkpoints", step)).averaged_weights()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in exported.items())


def test_a_copy_of_a_run_without_it_says_so(unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    for file in run.glob("checkpoints/*/validation.json"):
        file.unlink()
    with pytest.raises(RunFolderError, match="no checkpoint whose validation accuracy is known"):
        ppll.load(run, best=True)


def test_after_a_change_of_what_is_validated_the_best_one_is_of_what_follows(
    unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    change = ("data.validation=3", "train.epochs=6")
    fit(run, *change, resume=True, allow_change=("data.validation",))
    result = json.loads((run / "result.json").read_text())
    assert is_best(unbroken)[0] not in steps(run / "checkpoints")
    assert result["best_step"] > 20
    assert ppll.load(run, best=True).step == result["best_step"]


def test_what_was_validated_on_other_arrays_is_forgotten(tmp_path: Path) -> None:
    data = {"batch_size": 8, "validation": 6}
    fixed = {"data": data, "checkpoint": {"keep": "best"}, "schedule": {"name": "constant"}}

    def fit_own(seed: int, epochs: int) -> ppll.Result:
        tree = {**OWN, **fixed, "train": {"epochs": epochs}}
        options = {"out": tmp_path / "run", "resume": True, "allow_change": ["data"]}
        return ppll.Trainer(tree, model=own_model(), data=own_data(seed), **options).fit()

    fit_own(seed=1, epochs=4)
    checkpoints = tmp_path / "run" / "checkpoints"
    record = ValidationRecord(step=9, accuracy=1.0)
    write_validation(step_folder(checkpoints, 9), record)
    fit_own(seed=1, epochs=5)
    assert steps(checkpoints) == [0, 9, 12, 15]
    fit_own(seed=2, epochs=6)
    assert 9 not in steps(checkpoints)
