"""Optimizers of the form ``module:Class``: what they are given, what is refused, resumed runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import ppll
from ppll.blocks.optimization import build_optimizer
from ppll.cli.app import main
from ppll.config import Recipe
from ppll.errors import RecipeError
from ppll.update_sections import OptimizerConfig
from tests.interleaving import digest, small_recipe, train_interleaved
from tests.own_modules import give_module
from tests.test_resuming import broken, fit, same_result
from tests.thinning import slow_but

MODULE = """
import torch
from torch.optim import Optimizer

class Lion(Optimizer):
    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * mean.lerp(p.grad, 1 - first).sign())
                mean.lerp_(p.grad, 1 - second)

class Bare(Optimizer):
    "Takes it that every parameter has a gradient."
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad)

class Counting(Bare):
    "Counts in a group, as many libraries do."
    def step(self):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for p in group["params"]:
                if p.grad is not None:
                    p.data.sub_(group["lr"] * p.grad / group["step"])

class Numbered(Bare):
    "Counts in the state, but not in a tensor."
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if not self.state[p]:
                    self.state[p]["mean"], self.state[p]["step"] = torch.zeros_like(p), 0
                self.state[p]["step"] += 1
                if p.grad is not None:
                    p.data.sub_(group["lr"] * p.grad / self.state[p]["step"])

class Averaging(Bare):
    "Keeps a mean under the name that a run's averages have."
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("average", torch.zeros_like(p))
                    p.data.sub_(group["lr"] * mean.lerp_(p.grad, 0.1))

class Failing(Bare):
    def step(self):
        raise ValueError("two dimensions only")

class Unscheduled(Optimizer):
    def __init__(self, params):
        super().__init__(params, {})

class Other:
    pass
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_module(monkeypatch, tmp_path, "own_optimizers", MODULE)


def built(name: str, **config: object) -> torch.optim.Optimizer:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    return build_optimizer(OptimizerConfig(name=name, **config), 0, [module])  # type: ignore[arg-type]


def test_a_class_gets_rate_decay_and_options() -> None:
    made = built("own_optimizers:Lion", lr=0.5, weight_decay=0.1, options={"betas": [0.8, 0.9]})
    assert type(made).__name__ == "Lion"
    (group,) = made.param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.5, 0.1, [0.8, 0.9])
    assert len(built("own_optimizers:Lion", decay_all=False).param_groups) == 2
    assert len(built("torch.optim:AdamW").param_groups) == 1, "decays all, unlike adamw"


def test_classes_of_torch_are_taken_too() -> None:
    made = built("torch.optim:RMSprop", lr=0.5, options={"alpha": 0.5})
    assert type(made) is torch.optim.RMSprop
    assert made.defaults["alpha"] == 0.5


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("own_optimizer:Lion", {}, r"optimizer\.name .*Did you mean 'own_optimizers'"),
        ("own_optimizers:Lio", {}, "Did you mean 'Lion'"),
        ("own_optimizers:Other", {}, r"no optimizer: .* subclass of torch\.optim\.Optimizer\."),
        ("adam:beta", {}, "adam is an optimizer of the shelf: leave out what follows it"),
        ("own_optimizers:Unscheduled", {}, r"takes no lr.*parameter lr"),
        ("own_optimizers:Bare", {}, r"takes no weight_decay: set optimizer\.weight_decay = 0"),
        ("own_optimizers:Lion", {"options": {"beta": 1}}, "unknown option.*'beta'.*'betas'"),
        ("own_optimizers:Lion", {"options": {"lr": 1}}, r"write optimizer\.lr"),
        ("torch.optim:RMSprop", {"options": {"alpha": -1}}, "when it is built: ValueError.*alpha"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, config: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        built(name, **config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimizer.name=lion"], r"unknown optimizer 'lion'.*adam, adamw, module:Class .*, sgd"),
        (["optimizer.options.alpha=1"], r'optimizer\.options are for a "module:Class"'),
        (["optimizer.name=m:C", "optimizer.fused=true"], r"optimizer\.fused is of sgd"),
        (["optimizer.name=m:C", "train.cuda_graphs=true"], "named by its module"),
        (
            ["optimizer.name=m:C", "runtime.sharding=fsdp", "train.replicas=2"],
            "may look at whole tensors",
        ),
    ],
)
def test_recipes_that_cannot_be_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe().with_settings(settings)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Failing", r"on block 0: ValueError: two dimensions only \(.*own_optimizers\.py, line"),
        ("Bare", r"on block 0: TypeError: .*NoneType.* \(.*own_optimizers\.py, line"),
        ("Counting", r"does not go on alike.*Found besides: param_groups\[\.\.\.\]\['step'\]"),
        ("Averaging", r"keeps state\[parameter\]\['average'\], .* train\.ema .*another name"),
        ("Numbered", r"does not go on alike.*Found besides: state\[parameter\]\['step'\], int"),
    ],
)
def test_one_that_no_checkpoint_could_hold_is_refused(name: str, message: str) -> None:
    optimizer = {"name": f"own_optimizers:{name}", "weight_decay": 0}
    with pytest.raises(RecipeError, match=message):
        ppll.Trainer({"data": {"name": "digits"}, "optimizer": optimizer})


def test_any_placement_gives_the_same_bits() -> None:
    recipe = small_recipe().with_settings(["optimizer.name=own_optimizers:Lion"])
    assert len({digest(train_interleaved(recipe, stages)) for stages in (1, 2, 4)}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", slow_but(["torch.optim:NAdam"], ["own_optimizers:Lion", "torch.optim:NAdam"])
)
def test_a_resumed_run_ends_alike(name: str, tmp_path: Path) -> None:
    settings = [f"optimizer.name={name}", "optimizer.lr=0.001"]
    fit(tmp_path / "whole", *settings)
    broken(tmp_path / "run", 5, *settings)
    fit(tmp_path / "run", *settings, resume=True)
    same_result(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"name": "own_optimizers:Lion", "lr": 1e30}},
        {
            "method": {"name": "backprop"},
            "optimizer": {
                "name": "torch.optim:Rprop",
                "weight_decay": 0,
                "blocks": {0: {"weight_decay": 0.1}},
            },
        },
    ],
    ids=["beyond all numbers", "overrides that are left out"],
)
def test_a_trial_finds_no_fault_that_is_not_the_optimizers(changes: dict) -> None:
    ppll.Trainer({"data": {"name": "digits"}, **changes})


def test_a_block_without_parameters_to_train_is_not_tried() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    model[3].requires_grad_(False)
    optimizer = {"name": "own_optimizers:Lion"}
    split = {"blocks": 2, "cuts": [2]}
    ppll.Trainer({"data": {"name": "digits"}, "split": split, "optimizer": optimizer}, model=model)


def test_a_trial_changes_no_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seeds = torch.random.get_rng_state(), list[int]()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    ppll.Trainer({"data": {"name": "digits"}, "optimizer": {"name": "own_optimizers:Lion"}})
    assert torch.equal(before, torch.random.get_rng_state())
    assert seeds == [], "of the caller's GPUs"


def test_the_command_line_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "--set=optimizer.name=own_optimizers:Bare"
    monkeypatch.setattr(sys, "argv", ["ppll", "train", "digits-resnet", "--dry-run", name])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("RecipeError: optimizer.name = 'own_optimizers:Bare'")
