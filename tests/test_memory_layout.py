"""Maps with their channels last: where they are, and the same bits on any placement."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import ppll
from ppll.baselines.training import RecipeWork
from ppll.errors import ModelError, RecipeError
from ppll.memory_layout import channels_last, in_plain_order, lay_out, like
from ppll.message import Kind, Message
from ppll.methods import methods
from ppll.models.initialising import initialise
from ppll.planning.costs import measured_for
from tests.faults import recipe
from tests.interleaving import (
    MadeUpBatches,
    blueprint_of,
    built_blocks,
    digest,
    small_recipe,
    train_interleaved,
)
from tests.test_resuming import broken, fit, same_result
from tests.thinning import slow_but

LOCAL = [entry.name for entry in methods if not entry.build.end_to_end]


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))


def is_last(tensor: torch.Tensor) -> bool:
    last = tensor.is_contiguous(memory_format=torch.channels_last)
    return last and not tensor.is_contiguous()


def test_only_maps_are_laid_out() -> None:
    assert is_last(channels_last(torch.rand(2, 3, 4, 5)))
    rows = torch.rand(2, 3, 4)
    assert channels_last(rows) is rows
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    weights = list(module.parameters())
    lay_out(module)
    assert [is_last(p) for p in module.parameters()] == [True] + [False] * 5
    assert all(a is b for a, b in zip(weights, module.parameters(), strict=True))


def test_like_takes_over_values_and_order() -> None:
    plain, last = torch.rand(2, 3, 4, 5), channels_last(torch.rand(2, 3, 4, 5))
    moved = like(plain, last)
    assert is_last(moved)
    assert torch.equal(moved, plain)
    step = torch.tensor(3.0)
    assert like(step, last) is step


def test_first_values_depend_on_no_layout() -> None:
    plain, last = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
    lay_out(last)
    for module in (plain, last):
        initialise(module, "layer", 0)
    assert torch.equal(plain.weight, last.weight)
    assert is_last(last.weight)
    with in_plain_order([last.weight]):
        assert last.weight.is_contiguous()


def boundary(num_channels_last: bool) -> list[torch.Tensor]:
    base = small_recipe("resnet", channels_last=num_channels_last)
    batches = MadeUpBatches()
    message = Message(kind=Kind.TRAIN, sequence=0, step=1, tensors=batches.train_batch(0, 0))
    features = []
    for block in built_blocks(blueprint_of(base, batches)):
        message = block.forward(message)
        features.append(message.features)
    return features


def test_features_cross_boundaries_channels_last() -> None:
    plain, last = boundary(False), boundary(True)
    assert [is_last(features) for features in last] == [True, True, True, False]
    assert [is_last(features) for features in plain] == [False] * 4
    for a, b in zip(plain, last, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", slow_but(["contsup", "dgl", "infopro"], LOCAL))
@pytest.mark.parametrize("network", slow_but(["resnet"], ["resnet", "vit"]))
def test_every_method_on_any_placement(network: str, method: str) -> None:
    """All blocks on one stage, and each on its own."""
    base = small_recipe(network, method, channels_last=True)
    assert len({digest(train_interleaved(base, stages)) for stages in (1, 4)}) == 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_with_less_precision_and_batches_in_parts(precision: str) -> None:
    base = small_recipe(optimizer="adamw", channels_last=True, precision=precision, accumulate=2)
    assert len({digest(train_interleaved(base, stages)) for stages in (1, 2, 4)}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", slow_but(["adamw"], ["sgd", "adamw"]))
def test_a_resumed_run_ends_alike_and_is_used_alike(optimizer: str, tmp_path: Path) -> None:
    settings = ["train.channels_last=true", f"optimizer.name={optimizer}", "train.ema=0.9"]
    fit(tmp_path / "whole", *settings)
    broken(tmp_path / "run", 5, *settings)
    fit(tmp_path / "run", *settings, resume=True)
    same_result(tmp_path / "run", tmp_path / "whole")
    network = ppll.load(tmp_path / "run")
    assert is_last(next(p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1))


def test_a_restored_optimizer_has_the_order_of_its_parameters() -> None:
    (block, *_) = train_interleaved(small_recipe(channels_last=True), 1)
    state = {name: t.contiguous() for name, t in block.optimizer_tensors()}
    block.load(dict(block.modules.named_tensors()), state)
    orders = [
        (parameter.stride(), block.updates.optimizer.state[parameter]["momentum_buffer"].stride())
        for _, parameter in block.modules.named_parameters()
    ]
    assert all(own == restored for own, restored in orders)
    assert any(is_last(parameter) for _, parameter in block.modules.named_parameters())


@pytest.mark.slow
@pytest.mark.processes
def test_processes_and_one_process_end_alike(tmp_path: Path) -> None:
    base = recipe().with_settings(["train.channels_last=true"])
    hashes = [
        ppll.Trainer(base.with_settings([f"runtime.stages={n}"]), out=tmp_path / str(n)).fit()
        for n in (1, 4)
    ]
    assert hashes[0].weights_sha256 == hashes[1].weights_sha256


def test_it_belongs_to_what_costs_are_measured_for() -> None:
    plain, last = recipe(), recipe().with_settings(["train.channels_last=true"])
    assert measured_for(plain) != measured_for(last)


def test_convolutions_that_processors_learn_wrongly_are_refused() -> None:
    narrow = recipe().with_settings(["train.channels_last=true", "model.width=4"])
    with pytest.raises(ModelError, match=r"shortcut.*block 1 .*stride \(2, 2\) and 4 input"):
        ppll.Trainer(narrow)
    ppll.Trainer(narrow.with_settings(["train.channels_last=false"]))
    ppll.Trainer(narrow.with_settings(["model.width=8"]))


def test_rivals_refuse_it() -> None:
    work = RecipeWork(recipe().with_settings(["train.channels_last=true"]))
    with pytest.raises(RecipeError, match=r"train\.channels_last: .*set it to false"):
        work.prepared(layout=None)  # type: ignore[arg-type]  # not looked at before
