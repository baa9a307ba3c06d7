"""Whole runs that stop and go on, in this process unless a test needs others."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import ppll
from ppll.checkpoints.manifest import Manifest
from ppll.data import Dataset
from ppll.errors import (
    CheckpointError,
    DataError,
    ModelError,
    PpllError,
    RecipeError,
    RunFolderError,
    UsageError,
    WorkerError,
)
from ppll.result import read_result
from ppll.run_folder import RunFolder
from ppll.testing import FAULT_VARIABLE, Fault
from tests.faults import injected, recipe
from tests.thinning import slow_but


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))


def fit(out: Path, *settings: str, resume: bool = False, **options: Any) -> ppll.Result:
    base = recipe().with_settings(settings)
    return ppll.Trainer(base, out=out, resume=resume, **options).fit()


def broken(out: Path, step: int, *settings: str, activity: str = "LEARN") -> None:
    """A run that fails at a step; its checkpoints are every third step's."""
    with injected(Fault(0, step, activity)), pytest.raises(WorkerError):
        fit(out, *settings)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    fit(run)
    return run


def same_result(run: Path, unbroken: Path) -> None:
    keys = ("weights_sha256", "exit_accuracy", "test_accuracy", "validation_accuracy", "step")
    results = [json.loads((r / "result.json").read_text()) for r in (run, unbroken)]
    assert [results[0][key] for key in keys] == [results[1][key] for key in keys]
    assert metrics(run) == metrics(unbroken)


# Of four steps an epoch: within the first, at its end, within the second, at the run's last step.
@pytest.mark.parametrize("step", slow_but([4, 12], [1, 2, 4, 5, 7, 12]))
def test_a_run_goes_on_from_its_newest_checkpoint(
    step: int, tmp_path: Path, unbroken: Path
) -> None:
    broken(tmp_path / "run", step)
    fit(tmp_path / "run", resume=True)
    same_result(tmp_path / "run", unbroken)
    assert [entry["step"] for entry in history(tmp_path / "run")] == [0, (step - 1) // 3 * 3]


def test_it_goes_on_from_the_end_of_an_epoch(tmp_path: Path) -> None:
    settings = ("checkpoint.every_steps=4",)
    fit(tmp_path / "whole", *settings)
    broken(tmp_path / "run", 5, *settings)
    fit(tmp_path / "run", *settings, resume=True)
    same_result(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_failure_at_every_start_is_survived(tmp_path: Path, unbroken: Path) -> None:
    out = tmp_path / "run"
    broken(out, 4)
    for step in (5, 8, 11):
        with injected(Fault(0, step)), pytest.raises(WorkerError):
            fit(out, resume=True)
    fit(out, resume=True)
    same_result(out, unbroken)
    assert [entry["step"] for entry in history(out)] == [0, 3, 3, 6, 9]


def test_a_finished_run_says_so_and_what_it_came_to(
    tmp_path: Path, unbroken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    first = fit(out)
    caplog.set_level(logging.INFO, "ppll")
    started = history(out)
    assert fit(out.rename(tmp_path / "moved"), resume=True) == replace(
        first, run_folder=str(tmp_path / "moved")
    )
    assert "finished already at step 12; to train more, raise train.epochs" in caplog.text
    assert "goes on" not in caplog.text
    assert history(tmp_path / "moved") == started
    same_result(tmp_path / "moved", unbroken)


def test_a_finished_run_without_its_result_is_tested_again(
    tmp_path: Path, unbroken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = fit(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    caplog.set_level(logging.INFO, "ppll")
    again = fit(tmp_path / "run", resume=True)
    assert "finished already at step 12: it is tested again" in caplog.text
    assert (again.exit_accuracy, again.samples_per_second) == (first.exit_accuracy, 0)
    same_result(tmp_path / "run", unbroken)


def test_resume_begins_where_nothing_is(tmp_path: Path, unbroken: Path) -> None:
    fit(tmp_path / "run", resume=True)
    same_result(tmp_path / "run", unbroken)


def test_a_trainer_goes_on_with_the_run_that_it_has_begun(tmp_path: Path, unbroken: Path) -> None:
    trainer = ppll.Trainer(recipe(), out=tmp_path / "run", resume=True)
    with injected(Fault(0, 7)), pytest.raises(WorkerError):
        trainer.fit()
    assert trainer.check() == 6
    trainer.fit()
    same_result(tmp_path / "run", unbroken)


def test_resume_begins_again_where_no_checkpoint_was_finished(
    tmp_path: Path, unbroken: Path
) -> None:
    out = tmp_path / "run"
    broken(out, 1)
    (out / "checkpoints" / "step-00000000" / "manifest.json").unlink()
    fit(out, resume=True)
    same_result(out, unbroken)


def test_a_damaged_checkpoint_is_passed_over_and_said_so(
    tmp_path: Path, unbroken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    broken(out, 8)
    shard = out / "checkpoints" / "step-00000006" / "block-02.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with caplog.at_level(logging.INFO, "ppll"):
        fit(out, resume=True)
    assert "block-02.safetensors is damaged" in caplog.text
    assert "goes on from the checkpoint of step 3" in caplog.text
    assert (out / "checkpoints" / "step-00000006.damaged").is_dir()
    same_result(out, unbroken)


def test_nothing_is_trained_where_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    out = tmp_path / "run"
    broken(out, 2)
    (out / "checkpoints" / "step-00000000" / "block-00.safetensors").unlink()
    before = sorted(out.rglob("*"))
    with pytest.raises(CheckpointError, match=r"no checkpoint is whole(.|\n)*block-00"):
        fit(out, resume=True)
    assert sorted(out.rglob("*")) == before


def test_another_recipe_is_refused_by_key(tmp_path: Path) -> None:
    out = tmp_path / "run"
    broken(out, 5)
    config = (out / "config.toml").read_text()
    with pytest.raises(RecipeError, match=r"split\.blocks \(was 4, is 2\)"):
        fit(out, "split.blocks=2", resume=True)
    assert (out / "config.toml").read_text() == config


def test_another_cut_keeps_layers_and_the_auxiliaries_that_match(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    broken(out, 4)
    four = ppll.load(out)
    # Too small a rate to change anything, so what was kept can be seen.
    still = ("optimizer.lr=1e-30", "optimizer.weight_decay=0")
    fit(out, "split.blocks=3", *still, resume=True, allow_change=("split", "optimizer"))
    three = ppll.load(out)
    pairs = zip(four.blocks.parameters(), three.blocks.parameters(), strict=True)
    assert all(torch.equal(before, now) for before, now in pairs)
    entry = history(out)[-1]
    assert entry["changed"][0] == "split.blocks (was 4, is 3)"
    assert entry["fresh"] == ["auxiliary.stage1_1"]
    assert "auxiliary.stage1_1 is not in the checkpoint and starts with first values" in caplog.text


def test_to_resume_needs_to_know_where() -> None:
    with pytest.raises(UsageError, match=r"resume=True needs out="):
        ppll.Trainer(recipe(), resume=True)


def test_a_change_is_allowed_only_of_a_run_that_goes_on(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"allow_change=\['train'\] needs resume=True"):
        ppll.Trainer(recipe(), out=tmp_path / "run", allow_change=["train"])
    with pytest.raises(UsageError, match="allow_change is 'train': give a list"):
        ppll.Trainer(recipe(), out=tmp_path / "run", resume=True, allow_change="train")


def test_a_failure_says_how_to_go_on(tmp_path: Path) -> None:
    with injected(Fault(0, 4)), pytest.raises(WorkerError) as failed:
        fit(tmp_path / "run")
    (note,) = failed.value.__notes__
    assert note.startswith(f"Its newest checkpoint is in {tmp_path / 'run'}. ")
    assert "--resume" in note


def test_a_full_disk_hides_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ppll.metrics.write_whole", full)
    with injected(Fault(0, 4)), pytest.raises(WorkerError, match="block 0"):
        fit(tmp_path / "run")
    assert "no metrics.jsonl, its rows lie in" in caplog.text


def test_what_has_changed_since_the_checkpoint_is_not_asked_of_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    broken(out, 4, "train.accumulate=5")
    before, exits = ppll.evaluate(out), ppll.evaluate_exits(out)
    since = ("split.blocks=3", "data.batch_size=4", "train.label_smoothing=0.1")
    with injected(Fault(0, 5, "LEARN")), pytest.raises(WorkerError):
        fit(out, *since, resume=True, allow_change=["split", "data.batch_size", "train"])
    assert "blocks = 3" in (out / "config.toml").read_text()
    assert ppll.evaluate(out).exit_accuracy == before.exit_accuracy
    assert ppll.evaluate_exits(out).exit_loss == exits.exit_loss
    assert len(ppll.load(out).blocks) == 4


def test_a_run_at_its_end_takes_no_change_that_is_still_to_be_learned(tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(out, "train.epochs=1")
    before = {path: path.read_bytes() for path in out.glob("*.*")}
    with pytest.raises(RecipeError, match=r"at its end .*auxiliary\.stage1_1.*train\.epochs"):
        fit(out, "train.epochs=1", "split.blocks=3", resume=True, allow_change=["split"])
    assert {path: path.read_bytes() for path in out.glob("*.*")} == before


def test_another_optimizer_starts_without_state(tmp_path: Path) -> None:
    out = tmp_path / "run"
    broken(out, 5)
    fit(out, "optimizer.name=adamw", resume=True, allow_change=["optimizer"])


@pytest.mark.slow
def test_a_longer_run_goes_on_where_the_schedule_has_no_end(tmp_path: Path) -> None:
    constant = "schedule.name=constant"
    fit(tmp_path / "run", constant, "train.epochs=2")
    longer = fit(tmp_path / "run", constant, resume=True)
    assert longer.weights_sha256 == fit(tmp_path / "whole", constant).weights_sha256
    fit(tmp_path / "cosine", "train.epochs=2")
    with pytest.raises(RecipeError, match="cosine schedule ends with the run"):
        fit(tmp_path / "cosine", resume=True)


@pytest.mark.slow
def test_a_longer_run_goes_on_where_every_block_has_another_schedule(tmp_path: Path) -> None:
    constant = [f"schedule.blocks.{index}.name=constant" for index in range(4)]
    fit(tmp_path / "run", *constant, "train.epochs=2")
    assert fit(tmp_path / "run", *constant, resume=True).step == 12


def test_a_run_cannot_go_on_to_less_than_it_has(tmp_path: Path) -> None:
    constant = "schedule.name=constant"
    fit(tmp_path / "run", constant)
    with pytest.raises(RecipeError, match="has 12 steps behind it, but the recipe ends after 5"):
        fit(tmp_path / "run", constant, "train.max_steps=5", resume=True)


def test_a_finished_run_keeps_what_it_measured(tmp_path: Path) -> None:
    first = fit(tmp_path / "run")
    fit(tmp_path / "run", resume=True)
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["samples_per_second"] == first.samples_per_second > 0


def test_what_a_run_that_is_tested_again_came_to_is_written(tmp_path: Path) -> None:
    first = fit(tmp_path / "run")
    again = fit(tmp_path / "run", "data.test_limit=3", resume=True, allow_change=["data"])
    assert again == read_result(RunFolder(tmp_path / "run"))
    assert again.exit_accuracy == ppll.evaluate(tmp_path / "run").exit_accuracy
    assert again.train_seconds == first.train_seconds > 0


def test_a_run_that_died_before_its_result_was_written_is_not_left_with_an_older_one(
    tmp_path: Path,
) -> None:
    first = fit(tmp_path / "run")
    interrupted = replace(first, step=5, test_accuracy=None, exit_accuracy=())
    RunFolder(tmp_path / "run").write_result(asdict(interrupted))
    again = fit(tmp_path / "run", resume=True)
    assert again == read_result(RunFolder(tmp_path / "run"))
    assert (again.step, again.exit_accuracy) == (12, first.exit_accuracy)


@pytest.mark.slow
def test_weights_are_not_forgotten_where_no_checkpoint_was_finished(tmp_path: Path) -> None:
    source = fit(tmp_path / "source")
    settings = (f"model.weights={tmp_path / 'source'}", "optimizer.lr=1e-30", "train.seed=9")
    out = tmp_path / "run"
    broken(out, 1, *settings)
    (out / "checkpoints" / "step-00000000" / "manifest.json").unlink()
    fit(out, *settings, "optimizer.weight_decay=0", resume=True)
    pairs = zip(
        ppll.load(out).blocks.parameters(),
        ppll.load(tmp_path / "source").blocks.parameters(),
        strict=True,
    )
    assert all(torch.equal(now, trained) for now, trained in pairs)
    assert source.step == 12


def test_another_environment_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "run"
    broken(out, 5)
    environment = json.loads((out / "environment.json").read_text())
    environment["packages"]["torch"] = "2.0"
    (out / "environment.json").write_text(json.dumps(environment))
    fit(out, resume=True)
    assert "bits may differ from those of an unbroken one: torch was '2.0'" in caplog.text


def own_model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


def own_data(seed: int = 1) -> Dataset:
    inputs = torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(seed))
    targets = (inputs.sum(dim=(1, 2)) > 0).long()
    return Dataset.from_arrays(train=(inputs[:30], targets[:30]), test=(inputs[30:], targets[30:]))


OWN = {
    "data": {"batch_size": 10},
    "split": {"blocks": 2},
    "method": {"name": "greedy"},
    "train": {"epochs": 4},
    "checkpoint": {"every_steps": 2},
}


def fit_own(out: Path, resume: bool = False, data: Dataset | None = None) -> tuple[str, nn.Module]:
    model = own_model()
    data = data or own_data()
    result = ppll.Trainer(OWN, model=model, data=data, out=out, resume=resume).fit()
    return result.weights_sha256, model


def test_own_model_and_data_go_on(tmp_path: Path) -> None:
    expected, whole = fit_own(tmp_path / "whole")
    with injected(Fault(0, 7)), pytest.raises(WorkerError):
        fit_own(tmp_path / "run")
    found, model = fit_own(tmp_path / "run", resume=True)
    assert found == expected
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True)
    )
    with pytest.raises(DataError, match="trained on other data"):
        fit_own(tmp_path / "run", resume=True, data=own_data(seed=2))


def test_another_model_of_one_s_own_is_refused(tmp_path: Path) -> None:
    fit_own(tmp_path / "run")
    other = nn.Sequential(nn.Flatten(), nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 2))
    with pytest.raises(ModelError, match="layer '1' of the network is not in the checkpoint"):
        ppll.Trainer(OWN, model=other, data=own_data(), out=tmp_path / "run", resume=True).fit()


def other_own_model() -> nn.Sequential:
    """Of the same names and shapes."""
    model = own_model()
    model[2] = nn.ReLU()
    return model


def go_on(out: Path, **options: Any) -> ppll.Result:
    recipe = {**OWN, "train": {"epochs": 5}, "schedule": {"name": "constant"}}
    return ppll.Trainer(recipe, data=own_data(), out=out, resume=True, **options).fit()


def test_another_layer_of_the_same_shape_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    constant = {**OWN, "schedule": {"name": "constant"}}
    ppll.Trainer(constant, model=own_model(), data=own_data(), out=out).fit()
    match = r"by another network:\n  model\.layers \(was '2: Tanh\(\)', is '2: ReLU\(\)'\)"
    with pytest.raises(RecipeError, match=match):
        go_on(out, model=other_own_model())
    with pytest.raises(ModelError, match=r"has '2: ReLU\(\)', but was trained with '2: Tanh"):
        ppll.load(out, model=other_own_model())
    with pytest.raises(ModelError, match="this model is not the one that was trained"):
        ppll.evaluate(out, model=other_own_model())
    assert go_on(out, model=other_own_model(), allow_change=("model.layers",)).step == 15
    ppll.load(out, model=other_own_model())
    with pytest.raises(ModelError, match="was trained with '2: ReLU"):
        ppll.load(out, model=own_model())


def edited(out: Path, change: Any) -> None:
    """Change what the manifests say of the network."""
    for path in out.glob("checkpoints/*/manifest.json"):
        tree = json.loads(path.read_text())
        change(tree)
        path.write_text(Manifest.model_validate(tree).sealed().model_dump_json())


def test_other_versions_only_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit_own(tmp_path / "run")
    edited(tmp_path / "run", lambda tree: tree["network"]["packages"].update(torch="2.0"))
    ppll.load(tmp_path / "run", model=own_model())
    assert "versions" not in caplog.text
    ppll.load(tmp_path / "run", model=other_own_model())
    assert "by other versions (torch was 2.0, is " in caplog.text
    assert "was '2: Tanh()', is '2: ReLU()'" in caplog.text


def test_older_checkpoints_say_nothing_of_the_network(tmp_path: Path) -> None:
    fit_own(tmp_path / "run")
    for path in (tmp_path / "run").glob("checkpoints/*/manifest.json"):
        tree = json.loads(path.read_text())
        del tree["network"], tree["sha256"]
        content = Manifest.model_validate(tree).model_dump_json(exclude={"sha256", "network"})
        sealed = {**json.loads(content), "sha256": hashlib.sha256(content.encode()).hexdigest()}
        path.write_text(json.dumps(sealed))
    ppll.load(tmp_path / "run", model=other_own_model())
    fit_own(tmp_path / "run", resume=True)


@pytest.mark.parametrize("stages", slow_but([2], [1, 2]))
@pytest.mark.processes
def test_a_failed_run_starts_again_by_itself(
    stages: int, tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault(stages - 1, 8, how="kill", generation=0)
    monkeypatch.setenv(FAULT_VARIABLE, fault.to_environment()[FAULT_VARIABLE])
    fit(tmp_path / "run", f"runtime.stages={stages}", max_restarts=1)
    same_result(tmp_path / "run", unbroken)
    first, second = history(tmp_path / "run")
    assert (first["generation"], first["step"]) == (0, 0)
    # The newest checkpoint may not have been on the disk yet.
    assert (second["generation"], second["step"]) in {(1, 3), (1, 6)}


@pytest.mark.processes
def test_the_same_exception_at_the_same_step_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAULT_VARIABLE, Fault(1, 8).to_environment()[FAULT_VARIABLE])
    with pytest.raises(WorkerError, match="The same happened after the restart"):
        fit(tmp_path / "run", "runtime.stages=2", max_restarts=9)
    assert len(history(tmp_path / "run")) == 2


@pytest.mark.slow
@pytest.mark.processes
def test_restarts_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = Fault(1, 8, how="exit")
    monkeypatch.setenv(FAULT_VARIABLE, fault.to_environment()[FAULT_VARIABLE])
    with pytest.raises(WorkerError, match="exited with code 3"):
        fit(tmp_path / "run", "runtime.stages=2", max_restarts=2)
    assert len(history(tmp_path / "run")) == 3


def test_a_stage_in_this_process_that_hangs_is_ended(tmp_path: Path) -> None:
    with (
        injected(Fault(0, 5, how="hang")),
        pytest.raises(WorkerError, match=r"failed at step 5.*no progress for 1 s(.|\n)*strike"),
    ):
        fit(tmp_path / "run", "runtime.stall_timeout_s=1")


def test_a_disk_that_is_too_small_is_found_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(RunFolderError, match=r"has 0\.0 MiB free, but 4 checkpoint\(s\) need"):
        fit(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_ends_the_run_and_an_older_checkpoint_stays(
    tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    write = ppll.checkpoints.checkpoint.write_whole

    def full(path: Path, content: bytes) -> None:
        if "step-00000006" in str(path) and path.name == "block-01.safetensors":
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("ppll.checkpoints.checkpoint.write_whole", full)
        with pytest.raises(WorkerError, match="No space left on device"):
            fit(out)
    fit(out, resume=True)
    assert history(out)[-1]["step"] == 3
    same_result(out, unbroken)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Batch 5 holds a value that is not finite."""
    from ppll.data.loader import Loader

    make = Loader.train_batch

    def batch(self: Loader, epoch: int, index: int) -> dict[str, torch.Tensor]:
        fields = make(self, epoch, index)
        if (epoch, index) == (1, 0):
            fields["features"][0] = float("nan")
        return fields

    monkeypatch.setattr(Loader, "train_batch", batch)
    return


@pytest.mark.usefixtures("poisoned")
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"block 0\) failed at step 5.*loss of block 0 is nan"):
        fit(tmp_path / "run")


@pytest.mark.usefixtures("poisoned")
def test_batches_whose_loss_is_not_finite_can_be_skipped(tmp_path: Path) -> None:
    result = fit(tmp_path / "run", "train.on_nonfinite=skip")
    assert result.step == 12
    assert all(t.isfinite().all() for t in ppll.load(tmp_path / "run").state_dict().values())
    rows = [row for row in metrics(tmp_path / "run") if "skipped" in row]
    assert [(row["block"], row["skipped"]) for row in rows] == [(i, 10) for i in range(4)]


@pytest.mark.usefixtures("poisoned")
def test_a_checkpoint_that_is_not_finite_is_never_committed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path / "run", "train.on_nonfinite=ignore")
    committed = [p.parent.name for p in (tmp_path / "run" / "checkpoints").rglob("manifest.json")]
    assert sorted(committed) == ["step-00000000", "step-00000003"]
    assert "holds a value that is not finite after step 6" in caplog.text


@pytest.mark.parametrize("error", [RecipeError, PpllError])
def test_an_unknown_key_cannot_be_allowed(error: type[Exception], tmp_path: Path) -> None:
    broken(tmp_path / "run", 2)
    with pytest.raises(error, match="unknown key of --allow-change"):
        fit(tmp_path / "run", resume=True, allow_change=["split.block"])
