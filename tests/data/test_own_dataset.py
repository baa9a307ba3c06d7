"""Data sets of the form ``module:function``: what they are given, what is refused, whole runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ppll
from ppll.bench.compare import compare
from ppll.cli.app import main
from ppll.data import check_dataset_name, load_dataset
from ppll.errors import DataError, RecipeError, WorkerError
from ppll.planning.measuring import measure
from ppll.sections import DataConfig
from ppll.studies.runs import list_runs
from ppll.studies.study import check_runs
from ppll.testing import Fault
from tests import faults
from tests.own_modules import give_module
from tests.test_resuming import same_result

MODULE = """
from __future__ import annotations
import itertools
from pathlib import Path
import torch
import ppll

_counted = itertools.count()

def images(size: int = 8, *, num: int = 60, noise: float = 1.0) -> ppll.Dataset:
    labels = torch.arange(num) % 3
    drawn = torch.randn(num, 1, size, size, generator=torch.Generator().manual_seed(1))
    inputs = labels[:, None, None, None] + noise * drawn
    train, test = (inputs[:48], labels[:48]), (inputs[48:], labels[48:])
    return ppll.Dataset.from_arrays(train=train, test=test)

def values(num: int = 60) -> ppll.Dataset:
    drawn = torch.randn(num, 4, generator=torch.Generator().manual_seed(1))
    parts = drawn[:48], drawn[48:]
    train, test = ((part, part.sum(1)) for part in parts)
    return ppll.Dataset.from_arrays(train=train, test=test)

def from_file(root: Path) -> ppll.Dataset:
    assert isinstance(root, Path)
    images = torch.tensor([[float(line)] for line in (root / "numbers.txt").read_text().split()])
    return ppll.Dataset.from_arrays(
        train=(images[:-2], [i % 3 for i in range(len(images) - 2)]),
        test=(images[-2:], [0, 1]),
        num_classes=3,
    )

def from_text(root: str | None = None) -> ppll.Dataset:
    assert isinstance(root, str)
    return from_file(Path(root))

def from_bytes(root: Path) -> ppll.Dataset:
    shades = torch.tensor([int(line) for line in (root / "numbers.txt").read_text().split()])
    images = shades.to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    parts = images[:-2], images[-2:]
    train, test = ((part, torch.arange(len(part)) % 3) for part in parts)
    return ppll.Dataset.from_arrays(train=train, test=test, num_classes=3)

class Changing:
    pass

def changing() -> ppll.Dataset:
    return images(noise=1.0 + next(_counted))

def raising() -> ppll.Dataset:
    raise FileNotFoundError("no such table")

def damaged() -> ppll.Dataset:
    return ppll.Dataset.from_arrays(train=([[1.0]], [-1]), test=([[1.0]], [0]))

def nothing() -> ppll.Dataset:
    pass

def taken(validation: float = 0.1, flip=False) -> ppll.Dataset:
    return images()

def undeclared():
    return images()

def network() -> list[torch.nn.Module]:
    linear = torch.nn.Linear
    return [torch.nn.Sequential(linear(4, 8), torch.nn.ReLU()), linear(8, 8), linear(8, 1)]
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_module(monkeypatch, tmp_path, "own_data", MODULE)


def made(name: str, **options: Any) -> ppll.Dataset:
    return load_dataset(DataConfig(name=f"own_data:{name}", **options))


def test_options_are_keyword_arguments_of_their_types() -> None:
    assert made("images", size=6, num=51).input_shape == (1, 6, 6)
    assert torch.equal(
        made("images", noise=0).train.inputs[:3, 0, 0, 0], torch.tensor([0.0, 1.0, 2.0])
    )


@pytest.mark.parametrize("name", ["from_file", "from_text"])
def test_a_parameter_root_is_the_folder_that_the_recipe_names(name: str, tmp_path: Path) -> None:
    (tmp_path / "numbers.txt").write_text("1 2 3 4 5", encoding="utf-8")
    assert len(made(name, root=tmp_path).train) == 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("own_dat:images", {}, r"cannot import 'own_dat' for data\.name .*Did you mean 'own_data'"),
        ("own_data:image", {}, r"unknown function or class .* Did you mean 'images'"),
        ("own_data.images", {}, r'data set .* write "module:function", such as "own_data:images"'),
        ("a:b:c", {}, r'such as "my_package\.my_module:MyDataSet"'),
        ("own_data:undeclared", {}, r"is no data set: .*a function that declares .*ppll\.Dataset"),
        ("own_data:Changing", {}, r"Changing is no data set: it must be a subclass of ppll\.Dat"),
        ("os:listdir", {}, r"listdir is no data set"),
        ("__main__:images", {}, "another process has another __main__"),
        ("digits:size", {}, r"digits is a data set of the shelf: its options are data\.KEY"),
        ("own_data:images", {"sise": 1}, r"unknown option .*'data\.sise'. Did .*'data\.size'"),
        ("own_data:images", {"size": "s"}, r"data\.size: .*integer.*'s'.*own_data:images"),
        ("own_data:images", {"root": "."}, r"data\.root = \.: .* has no parameter root\. Give"),
        ("own_data:from_file", {}, r"data\.root must be given for 'own_data:from_file'"),
        ("own_data:taken", {}, r"parameters of the names data\.validation, data\.flip, which"),
    ],
)
def test_what_cannot_be_called_is_refused_before_data_is_read(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check_dataset_name(DataConfig(name=name, **options))


def test_what_makes_no_data_set_is_refused() -> None:
    fails = r"data\.name = 'own_data:raising' fails when it is called: FileNotFoundError: no such"
    with pytest.raises(RecipeError, match=rf"{fails} table \(.*own_data\.py, line \d+\)"):
        made("raising")
    with pytest.raises(RecipeError, match=r"returned a NoneType: it must return a ppll\.Data"):
        made("nothing")
    with pytest.raises(DataError, match="label -1 of train sample 0"):
        made("damaged")


def trainer(out: Path, *settings: str, **options: Any) -> ppll.Trainer:
    data = {"name": "own_data:images", "batch_size": 6}
    recipe = faults.recipe().model_copy(update={"data": DataConfig(**data)})
    return ppll.Trainer(recipe.with_settings(settings), out=out, **options)


def test_it_is_what_the_same_arrays_are_and_is_not_copied(tmp_path: Path) -> None:
    named = trainer(tmp_path / "named").fit()
    given = trainer(tmp_path / "given", data=made("images")).fit()
    assert (named.weights_sha256, named.test_accuracy) == (
        given.weights_sha256,
        given.test_accuracy,
    )
    assert not (tmp_path / "named" / "data.safetensors").exists()


def test_a_resumed_run_ends_alike_and_is_evaluated(tmp_path: Path) -> None:
    ends = trainer(tmp_path / "whole").fit()
    with faults.injected(Fault(0, 5)), pytest.raises(WorkerError):
        trainer(tmp_path / "run").fit()
    trainer(tmp_path / "run", resume=True).fit()
    same_result(tmp_path / "run", tmp_path / "whole")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert len(environment["data_sha256"]) == 64
    assert ppll.evaluate(tmp_path / "run").exit_accuracy == ends.exit_accuracy
    report = ppll.evaluate_exits(tmp_path / "run")
    assert report.exit_accuracy == ends.exit_accuracy


def test_what_has_changed_since_is_refused_unless_it_is_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "numbers.txt").write_text(" ".join(map(str, range(32))), encoding="utf-8")
    settings = ["data.name=own_data:from_bytes", f"data.root={tmp_path}"]
    settings += ["schedule.name=constant", "checkpoint.every_steps=2", "train.max_steps=2"]
    trainer(tmp_path / "run", *settings).fit()
    (tmp_path / "numbers.txt").write_text(" ".join(map(str, range(1, 33))), encoding="utf-8")
    longer = [*settings, "train.max_steps=3"]
    with pytest.raises(DataError, match=r"contents \(SHA-256 was \w{64}, is \w{64}\)"):
        trainer(tmp_path / "run", *longer, resume=True).check()
    changed = r"data\.name = 'own_data:from_bytes' makes other data now than the run has \(SHA-256"
    with pytest.raises(DataError, match=changed):
        ppll.evaluate(tmp_path / "run")
    with pytest.raises(DataError, match=changed):
        ppll.evaluate_exits(tmp_path / "run")
    module = tmp_path / "modules" / "own_data.py"
    module.write_text(f"{MODULE}\n# changed\n", encoding="utf-8")
    trainer(tmp_path / "run", *longer, resume=True, allow_change=["data"]).fit()
    assert "data_sha256" in caplog.text
    assert "the run goes on with other data:" in caplog.text
    assert "  contents (SHA-256 was " in caplog.text
    assert ppll.evaluate(tmp_path / "run").step == 3
    # What was normalised by other means is not other data.
    assert ppll.evaluate(tmp_path / "run", step=2).step == 2


def test_one_that_is_another_each_time_is_refused_before_anything_is_learned(
    tmp_path: Path,
) -> None:
    changing = trainer(tmp_path / "run", "data.name=own_data:changing")
    with pytest.raises(WorkerError, match="must make the same in every process, so seed what it"):
        changing.fit()
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.processes
def test_stages_give_the_same_bits(tmp_path: Path) -> None:
    alone = trainer(tmp_path / "alone").fit()
    together = trainer(tmp_path / "together", "runtime.stages=2").fit()
    assert together.weights_sha256 == alone.weights_sha256


VALUES = {
    "data": {"name": "own_data:values", "batch_size": 12},
    "model": {"name": "own_data:network"},
    "split": {"blocks": 2},
    "method": {"name": "dgl", "auxiliary": "linear"},
    "loss": {"name": "torch.nn:MSELoss"},
    "optimizer": {"name": "adamw", "lr": 0.01},
    "train": {"max_steps": 4},
}


def test_values_are_planned_and_trained_but_not_studied(tmp_path: Path) -> None:
    recipe = ppll.Recipe.from_dict(VALUES)
    assert measure(recipe, repeats=1).num_train == 48
    result = ppll.Trainer(recipe, out=tmp_path / "run").fit()
    assert result.test_loss is not None
    assert ppll.evaluate(tmp_path / "run").test_loss == result.test_loss
    path = tmp_path / "values.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"values to predict.*ppll report"):
        check_runs(list_runs([str(path)], ["dgl"], 1, [], tmp_path / "study"))
    with pytest.raises(RecipeError, match=r"epochs: .* of which there is no accuracy"):
        compare(recipe, 2, ["ppll"], epochs=1)


@pytest.mark.processes
def test_rivals_train_on_them_too() -> None:
    recipe = ppll.Recipe.from_dict(VALUES)
    rows = compare(recipe, 2, ["ddp"], repeats=1, num_batches=2, warm_up=1)
    assert [row.system for row in rows] == ["ddp"]
    assert rows[0].rates[0] > 0


def test_the_command_line_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set=data.name=own_data:image"]
    monkeypatch.setattr(sys, "argv", ["ppll", "train", "digits-resnet", "--dry-run", *settings])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("RecipeError: unknown function or class of module")
