"""Learning rates by hand, which parameters decay, and the optimizer's state by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ppll.blocks.optimization import Schedule, build_optimizer, named_state, restore_state
from ppll.config import Recipe
from ppll.errors import RecipeError
from ppll.update_sections import OptimizerConfig, ScheduleConfig
from tests.interleaving import digest, small_recipe, train_interleaved
from tests.test_resuming import broken, fit, same_result
from tests.thinning import slow_but


def factors(num_steps: int, steps_per_epoch: int, **config) -> list[float]:
    schedule = Schedule(ScheduleConfig(**config), num_steps, steps_per_epoch)
    return [round(schedule.factor(step), 6) for step in range(1, num_steps + 1)]


def test_cosine_falls_from_one() -> None:
    assert factors(5, 1) == pytest.approx([1, 0.904508, 0.654508, 0.345492, 0.095492])


def test_warm_up_rises_on_a_line_and_meets_the_cosine() -> None:
    values = factors(8, 4, warmup_epochs=1)
    assert values[:4] == [0.25, 0.5, 0.75, 1]
    assert values[4:] == pytest.approx([0.853553, 0.5, 0.146447, 0], abs=1e-6)


def test_final_factor_is_where_the_cosine_ends() -> None:
    values = factors(6, 2, warmup_epochs=1, final_factor=0.1)
    assert values[-1] == pytest.approx(0.1)
    assert min(values[1:]) == values[-1]


def test_constant_stays_after_the_warm_up() -> None:
    assert factors(5, 2, name="constant") == [1] * 5
    assert factors(5, 2, name="constant", warmup_epochs=1.5) == [0.333333, 0.666667, 1, 1, 1]


def test_multistep_falls_as_torchs_does() -> None:
    config = {"name": "multistep", "milestones": [1, 3], "gamma": 0.2}
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torch_s = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3], gamma=0.2)
    wanted = []
    for _ in range(4):  # epochs of two steps
        wanted += torch_s.get_last_lr() * 2
        optimizer.step()
        torch_s.step()
    assert factors(8, 2, **config) == pytest.approx(wanted)
    assert factors(8, 2, **config, warmup_epochs=1)[:3] == pytest.approx([0.5, 1, 0.2])
    assert not ScheduleConfig(**config).knows_end(4)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"name": "multistep"}, r'"multistep" needs schedule\.milestones'),
        ({"milestones": [3, 1]}, r"must ascend, found \[3\.0, 1\.0\]"),
        ({"name": "multistep", "milestones": [2, 2]}, "must ascend"),
        ({"milestones": [2]}, r'are for "multistep", found "cosine": set schedule\.name'),
        (
            {"blocks": {1: {"name": "multistep"}}},
            r'"multistep" needs schedule\.blocks\.1\.milestones',
        ),
        (
            {"blocks": {0: {"name": "constant", "milestones": [3]}}},
            r'schedule\.blocks\.0\.milestones are for "multistep", found "constant"',
        ),
    ],
)
def test_milestones_must_fit_the_schedule(schedule: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict({"schedule": schedule})


def test_a_block_may_have_other_milestones_or_none() -> None:
    overrides = {0: {"milestones": [1]}, 1: {"name": "constant"}}
    config = ScheduleConfig(name="multistep", milestones=[2], blocks=overrides)
    rates = [
        [round(Schedule(config.of_block(i), 3, 1).factor(step), 6) for step in (1, 2, 3)]
        for i in range(3)
    ]
    assert rates == [[1, 0.1, 0.1], [1, 1, 1], [1, 1, 0.1]]


def test_a_block_may_have_a_schedule_of_its_own() -> None:
    """The second warms up for two of three epochs, the third stays, the others are the usual."""
    overrides = {1: {"warmup_epochs": 2}, 2: {"name": "constant"}}
    config = ScheduleConfig(warmup_epochs=1, final_factor=0.2, blocks=overrides)
    found = [Schedule(config.of_block(i), 6, 2) for i in range(4)]
    rates = [[round(schedule.factor(step), 6) for step in range(1, 7)] for schedule in found]
    assert rates[0] == rates[3] == factors(6, 2, warmup_epochs=1, final_factor=0.2)
    assert rates[1] == factors(6, 2, warmup_epochs=2, final_factor=0.2)
    assert rates[1][:4] == [0.25, 0.5, 0.75, 1]
    assert rates[2] == [0.5, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("config", "knows_end"),
    [
        ({}, True),
        ({"name": "constant"}, False),
        ({"name": "constant", "blocks": {1: {"name": "cosine"}}}, True),
        ({"name": "constant", "blocks": {1: {"warmup_epochs": 1}}}, False),
        ({"name": "cosine", "blocks": {0: {"name": "constant"}}}, True),
        ({"name": "cosine", "blocks": {i: {"name": "constant"} for i in range(3)}}, False),
    ],
)
def test_one_cosine_is_enough_to_know_the_end(config: dict, knows_end: bool) -> None:
    assert ScheduleConfig(**config).knows_end(3) is knows_end


class Mixed(nn.Module):
    """A parameter of every sort."""

    no_decay = frozenset({"position"})

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)
        self.embedding = nn.Embedding(4, 3)
        self.position = nn.Parameter(torch.zeros(1, 3))
        self.frozen = nn.Parameter(torch.zeros(1, 3), requires_grad=False)


def decays(**config) -> dict[str, float]:
    module = Mixed()
    groups = build_optimizer(OptimizerConfig(**config), 0, [module]).param_groups
    by_id = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    return {n: by_id[id(p)] for n, p in module.named_parameters() if id(p) in by_id}


ALL = {"linear.weight", "linear.bias", "norm.weight", "norm.bias", "embedding.weight", "position"}


@pytest.mark.parametrize(
    ("config", "decayed"),
    [
        ({"name": "sgd"}, ALL),
        ({"name": "adamw"}, {"linear.weight"}),
        ({"name": "adam"}, ALL),
        ({"name": "adamw", "decay_all": True}, ALL),
        ({"name": "sgd", "decay_all": False}, {"linear.weight"}),
    ],
)
def test_norms_biases_and_embeddings_decay_where_asked(config, decayed) -> None:
    found = decays(weight_decay=0.1, **config)
    assert set(found) == ALL
    assert {name for name, decay in found.items() if decay == 0.1} == decayed
    assert all(found[name] == 0 for name in ALL - decayed)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_what_is_tied_within_a_layer_is_one_parameter(name: str) -> None:
    """Its owners may be of two kinds: AdamW leaves embeddings alone, and decays linear layers."""
    module = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))
    module[1].weight = module[0].weight
    optimizer = build_optimizer(OptimizerConfig(name=name, weight_decay=0.1), 0, [module])
    [group] = optimizer.param_groups
    assert [p is module[0].weight for p in group["params"]] == [True]
    assert group["weight_decay"] == (0.0 if name == "adamw" else 0.1)


def test_one_block_may_be_different() -> None:
    overrides = {1: {"lr": 0.5}, 2: {"weight_decay": 0}}
    config = OptimizerConfig(lr=0.1, weight_decay=0.2, blocks=overrides)
    groups = [build_optimizer(config, i, [nn.Linear(2, 2)]).param_groups[0] for i in range(3)]
    assert [group["lr"] for group in groups] == [0.1, 0.5, 0.1]
    assert [group["weight_decay"] for group in groups] == [0.2, 0.2, 0]


def step(module: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad()
    module(inputs).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"name": "sgd"}, torch.optim.SGD),
        ({"name": "sgd", "momentum": 0, "nesterov": False}, torch.optim.SGD),
        ({"name": "adam"}, torch.optim.Adam),
        ({"name": "adamw"}, torch.optim.AdamW),
    ],
)
def test_states_are_as_many_as_said(
    config: dict[str, Any], kind: type[torch.optim.Optimizer]
) -> None:
    module, made = nn.Linear(3, 2), OptimizerConfig(**config)
    optimizer = build_optimizer(made, 0, [module])
    assert type(optimizer) is kind
    step(module, optimizer, 0)
    kept = [v for _, v in named_state(optimizer, module.named_parameters()) if v.ndim]
    assert len(kept) == 2 * made.num_states


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("fused", [None, False, True])
def test_restored_state_goes_on_bit_for_bit(name: str, fused: bool | None) -> None:
    config = OptimizerConfig(name=name, lr=0.1, fused=fused)
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer, restored = (build_optimizer(config, 0, [m]) for m in (module, other))
    step(module, optimizer, 0)
    other.load_state_dict(module.state_dict())
    state = {k: v.clone() for k, v in named_state(optimizer, module.named_parameters())}
    restore_state(restored, other.named_parameters(), state)
    for number in (1, 2):
        step(module, optimizer, number)
        step(other, restored, number)
    assert all(map(torch.equal, module.parameters(), other.parameters()))


def test_a_number_of_steps_stays_on_the_processor_and_all_else_lies_beside_the_parameter() -> None:
    module = nn.Linear(3, 2, device="meta")
    optimizer = build_optimizer(OptimizerConfig(), 0, [module])
    state = {"weight.step": torch.ones(()), "bias.step": torch.ones(2), "bias.mean": torch.ones(())}
    restore_state(optimizer, module.named_parameters(), state)
    found = {name: t.device.type for name, t in named_state(optimizer, module.named_parameters())}
    assert found == {"weight.step": "cpu", "bias.step": "meta", "bias.mean": "meta"}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_one_kernel_updates_nearly_alike(name: str) -> None:
    modules = [nn.Linear(3, 2) for _ in range(2)]
    modules[1].load_state_dict(modules[0].state_dict())
    for module, fused in zip(modules, (None, True), strict=True):
        config = OptimizerConfig(name=name, lr=0.1, fused=fused)
        optimizer = build_optimizer(config, 0, [module])
        assert optimizer.defaults["fused"] is fused
        for number in range(3):
            step(module, optimizer, number)
    torch.testing.assert_close(modules[0].weight, modules[1].weight)


@pytest.mark.parametrize(
    "settings", slow_but([{}], [{}, {"channels_last": True}, {"precision": "fp16"}])
)
@pytest.mark.parametrize("name", slow_but(["adamw"], ["sgd", "adamw"]))
def test_one_kernel_on_any_placement(name: str, settings: dict[str, Any]) -> None:
    base = small_recipe(optimizer=name, **settings).with_settings(["optimizer.fused=true"])
    assert len({digest(train_interleaved(base, stages)) for stages in (1, 2, 4)}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["adamw"], ["sgd", "adamw"]))
def test_a_resumed_run_with_one_kernel_ends_alike(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    settings = [f"optimizer.name={name}", "optimizer.fused=true", "train.channels_last=true"]
    fit(tmp_path / "whole", *settings)
    broken(tmp_path / "run", 5, *settings)
    fit(tmp_path / "run", *settings, resume=True)
    same_result(tmp_path / "run", tmp_path / "whole")


def test_state_is_named_by_parameter() -> None:
    module = nn.Linear(3, 2)
    optimizer = build_optimizer(OptimizerConfig(name="adamw"), 0, [module])
    assert not list(named_state(optimizer, module.named_parameters()))
    step(module, optimizer, 0)
    names = {name for name, _ in named_state(optimizer, module.named_parameters())}
    assert names == {
        f"{p}.{k}" for p in ("weight", "bias") for k in ("step", "exp_avg", "exp_avg_sq")
    }


@pytest.mark.parametrize(
    ("options", "there"),
    [({}, "cpu"), ({"capturable": True}, "meta"), ({"fused": True}, "meta")],
    ids=str,
)
def test_the_count_of_steps_comes_to_where_torch_counts(
    options: dict[str, bool], there: str
) -> None:
    """The meta device stands for a GPU."""
    parameter = nn.Parameter(torch.zeros(2, device="meta"))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.defaults.update(options)
    state = {"w.step": torch.tensor(3.0), "w.exp_avg": torch.zeros(2)}
    restore_state(optimizer, [("w", parameter)], state)
    devices = {key: value.device.type for key, value in optimizer.state[parameter].items()}
    assert devices == {"step": there, "exp_avg": "meta"}
