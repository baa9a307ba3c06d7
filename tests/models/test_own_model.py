"""Networks of the form ``module:function``: what they are given, what is refused, whole runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import faults
from tests.own_modules import give_module
from tests.test_resuming import same_result
from torch import nn

import ppll
from ppll.cli.app import main
from ppll.errors import RecipeError, UsageError, WorkerError
from ppll.models.own_model import build_own_model, check_own_model
from ppll.sections import ModelConfig
from ppll.testing import Fault

MODULE = """
from __future__ import annotations
from typing import TYPE_CHECKING
import torch
from torch import nn

class Scale(nn.Module):
    "Cannot reset itself."
    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(width))

    def forward(self, features):
        return features * self.factor

def row(width: int = 8, *, rate: float = 0.0, sizes=(1,)) -> list[nn.Module]:
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Dropout(rate), nn.ReLU())
    middle = [nn.Sequential(Scale(width), nn.Linear(width, width), nn.Tanh()) for _ in range(3)]
    return [first, *middle, nn.Linear(width, 3)]

class Net(nn.Module):
    def __init__(self, width=8, act: Unknown = None, **others) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.stem(x.flatten(1))
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

def needy(width) -> nn.Linear:
    return nn.Linear(width, 3)

def raising() -> nn.Module | list[nn.Module]:
    raise ValueError("no weights here")

def nothing() -> nn.Module:
    pass

def undeclared(command):
    raise SystemExit(command)

def number() -> list[nn.Module]:
    return [1, 2]

module = nn.Flatten()
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_module(monkeypatch, tmp_path, "own_networks", MODULE)


def built(name: str, seed: int = 0, **options: object) -> Any:
    return build_own_model(f"own_networks:{name}", options, seed)


def test_options_are_keyword_arguments_of_their_types() -> None:
    assert built("row", width=4, rate=1, sizes=[2])[0][1].out_features == 4
    assert type(built("row", rate=0)[0][2].p) is float
    assert isinstance(built("Net", act="relu", whatever=1), nn.Module)


def test_first_values_are_a_function_of_seed_and_name() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (built("Net", seed=seed).stem.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("own_network:row", {}, r"model\.name .*Did you mean 'own_networks'"),
        ("own_networks:rows", {}, r"unknown function or class .* Did you mean 'row'"),
        ("own_networks.Net", {}, r'write "module:function", such as "own_networks:Net"'),
        ("own_networks:module", {}, r"is no model: it must be a subclass of torch\.nn\.Module, or"),
        (
            "own_networks:undeclared",
            {"command": "x"},
            r"or a function that declares .*-> nn\.Module",
        ),
        ("subprocess:check_output", {"args": "true"}, r"check_output is no model"),
        ("torch.hub:load", {"repo_or_dir": "x", "model": "y"}, r"load is no model"),
        ("__main__:Net", {}, "another process has another __main__"),
        ("resnet32:depth", {}, r"resnet32 is a model of the shelf: its options are model\.KEY"),
        ("own_networks:row", {"with": 1}, r"unknown option.*'model\.with'. Did .*'model\.width'"),
        ("own_networks:row", {"width": "w"}, r"model\.width: .*integer.*'w'.*own_networks:row"),
        ("own_networks:needy", {}, r"model\.width must be given for 'own_networks:needy'"),
    ],
)
def test_what_cannot_be_built_is_refused_before_data_is_read(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check_own_model(name, options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raising", r"fails when it is built: ValueError: no weights here \(.*networks\.py, line"),
        ("nothing", r"returned None: it must return an nn\.Module or a list of modules"),
        ("number", r"returned \[1, 2\]: it must return"),
    ],
)
def test_what_makes_no_network_is_refused(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        built(name)


def test_a_module_of_a_library_is_one_of_one_s_own() -> None:
    assert ModelConfig(name="torchvision.models:resnet18").is_own
    assert not ModelConfig(name="torchvision:resnet18").is_own


def trainer(out: Path, *settings: str, **options: Any) -> ppll.Trainer:
    model = ModelConfig(name="own_networks:row", width=6)
    recipe = faults.recipe().model_copy(update={"model": model})
    return ppll.Trainer(recipe.with_settings(settings), out=out, **options)


def test_a_resumed_run_ends_alike_and_is_read_by_its_name(tmp_path: Path) -> None:
    ends = trainer(tmp_path / "whole").fit()
    with faults.injected(Fault(0, 5)), pytest.raises(WorkerError):
        trainer(tmp_path / "run").fit()
    trainer(tmp_path / "run", resume=True).fit()
    same_result(tmp_path / "run", tmp_path / "whole")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert len(environment["model_sha256"]) == 64
    assert ppll.evaluate(tmp_path / "run").exit_accuracy == ends.exit_accuracy
    assert ppll.load(tmp_path / "run").blocks[0][0][1].out_features == 6


def test_weights_of_an_earlier_run_are_taken(tmp_path: Path) -> None:
    trainer(tmp_path / "source").fit()
    start = [f"model.weights={tmp_path / 'source'}", "train.max_steps=1", "optimizer.lr=1e-30"]
    trainer(tmp_path / "run", *start).fit()
    pairs = zip(
        ppll.load(tmp_path / "run").blocks.parameters(),
        ppll.load(tmp_path / "source").blocks.parameters(),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.processes
def test_stages_give_the_same_bits(tmp_path: Path) -> None:
    alone = trainer(tmp_path / "alone").fit()
    together = trainer(tmp_path / "together", "runtime.stages=2").fit()
    assert together.weights_sha256 == alone.weights_sha256


def test_a_module_is_cut_as_a_given_one(tmp_path: Path) -> None:
    cut = trainer(tmp_path / "run", "model.name=own_networks:Net")
    assert [layer.path for layer in cut.blueprint.network.layers][1] == "layers.0"


def test_one_that_does_not_fit_the_data_is_refused() -> None:
    recipe = {"data": {"name": "digits"}, "model": {"name": "own_networks:row"}}
    with pytest.raises(UsageError, match="the data has 10 classes"):
        ppll.Trainer(recipe)


def test_the_command_line_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set=model.name=own_networks:rows"]
    monkeypatch.setattr(sys, "argv", ["ppll", "train", "digits-resnet", "--dry-run", *settings])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("RecipeError: unknown function or class of module")
