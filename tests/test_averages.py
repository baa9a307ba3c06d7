"""Averages of weights: their closed form, what is evaluated with them, and any placement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import ppll
from ppll.blocks.averages import Averages
from ppll.blocks.block import Block
from ppll.checkpoints.reader import TensorReader
from ppll.errors import RecipeError, WorkerError
from ppll.message import TARGETS, Kind, Message
from ppll.methods import methods
from ppll.run_folder import RunFolder
from ppll.testing import Fault
from tests.faults import injected, recipe
from tests.interleaving import (
    MadeUpBatches,
    blueprint_of,
    built_blocks,
    digest,
    small_recipe,
    train_interleaved,
)
from tests.test_resuming import OWN, metrics, own_data, own_model
from tests.thinning import KINDS_OF_METHODS, slow_but

LOCAL = [entry.name for entry in methods if not entry.build.end_to_end]


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def test_an_average_has_its_closed_form() -> None:
    """``sum over t of (1 - d_t) p_t times all later d``, and the first value times all of them."""
    weight = parameter(5.0, -2.0)
    averages = Averages([("weight", weight)], 0.5)
    decays = [2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 9 / 18, 0.5, 0.5]
    rows = [weight.tolist()] + [[float(t**2 % 7), 1 / t] for t in range(1, len(decays) + 1)]
    for step, row in enumerate(rows[1:], 1):
        weight.data.copy_(torch.tensor(row))
        averages.update(step)
    expected = [0.0, 0.0]
    for t, row in enumerate(rows):
        factor = 1.0 if t == 0 else 1 - decays[t - 1]
        for later in decays[t:]:
            factor *= later
        expected = [total + factor * value for total, value in zip(expected, row, strict=True)]
    (found,) = dict(averages.named()).values()
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_parameter_that_stays_is_its_average() -> None:
    weight = parameter(0.1, 0.3)
    averages = Averages([("weight", weight)], 0.999)
    for step in range(1, 50):
        averages.update(step)
    assert torch.equal(dict(averages.named())["weight.average"], weight)


def fail_with(averages: Averages, weight: nn.Parameter) -> None:
    with averages.in_place():
        raise ValueError(weight.item())


def test_values_are_exchanged_and_come_back_after_an_error() -> None:
    weight = parameter(1.0)
    averages = Averages([("weight", weight)], 0.9)
    weight.data.fill_(3.0)
    version, place = weight._version, weight.data_ptr()
    with pytest.raises(ValueError, match=r"^1\.0$"):
        fail_with(averages, weight)
    assert weight.item() == 3.0
    assert (weight._version, weight.data_ptr()) == (version, place)


def test_what_was_not_saved_starts_from_the_parameter() -> None:
    first, second = parameter(1.0), parameter(2.0)
    averages = Averages([("first", first), ("second", second)], 0.9)
    second.data.fill_(7.0)
    averages.load({"first.average": torch.tensor([4.0])})
    assert [a.item() for _, a in averages.named()] == [4.0, 7.0]


def trained(**train: Any) -> list[Block]:
    return train_interleaved(small_recipe(**train), num_stages=1)


def evaluated(blocks: list[Block]) -> list[Tensor]:
    """Features of every block for an evaluation batch."""
    tensors = MadeUpBatches().train_batch(0, 0)
    message = Message(kind=Kind.EVALUATE, sequence=0, step=6, tensors=tensors)
    found = []
    for block in blocks:
        with block.exchange.evaluated(block.averages):
            message = block.forward(message)
            block.evaluate()
        found.append(message.features)
    return found


def test_learning_does_not_know_of_averages() -> None:
    plain, averaged = trained(), trained(ema=0.9)
    for one, other in zip(plain, averaged, strict=True):
        assert all(
            torch.equal(a, b)
            for (_, a), (_, b) in zip(
                one.modules.named_tensors(), other.modules.named_tensors(), strict=True
            )
        )
    assert not any(
        torch.equal(a, b) for a, b in zip(evaluated(plain), evaluated(averaged), strict=True)
    )


def test_evaluations_between_change_nothing() -> None:
    assert digest(trained(ema=0.9)) == digest(trained(ema=0.9, evaluate_every=0))


def test_evaluation_computes_with_the_averages_and_the_running_statistics() -> None:
    blocks = trained(ema=0.9)
    other = built_blocks(blueprint_of(small_recipe(), MadeUpBatches()))
    for block, twin in zip(blocks, other, strict=True):
        averages = {n.removesuffix(".average"): a for n, a in block.named_averages()}
        twin.load({**dict(block.modules.named_tensors()), **averages}, {})
    assert all(map(torch.equal, evaluated(blocks), evaluated(other)))
    found, expected = ([block.counts.take() for block in some] for some in (blocks, other))
    assert found == expected


def test_a_skipped_batch_leaves_the_averages() -> None:
    blocks = built_blocks(blueprint_of(small_recipe(ema=0.9, on_nonfinite="skip"), MadeUpBatches()))
    before = digest(blocks)
    tensors = dict(MadeUpBatches().train_batch(0, 0))
    tensors["features"] = torch.full_like(tensors["features"], torch.nan)
    message = Message(kind=Kind.TRAIN, sequence=0, step=1, tensors=tensors)
    for block in blocks:
        message = block.forward(message)
        block.learn()
        assert block.counts.take().skipped == len(tensors[TARGETS])
    assert digest(blocks) == before


@pytest.mark.parametrize("method", slow_but(KINDS_OF_METHODS, LOCAL))
@pytest.mark.parametrize("network", slow_but(["resnet"], ["resnet", "vit"]))
def test_the_same_bits_on_every_placement(method: str, network: str) -> None:
    """The digest has the averages; so have the parameters that MAN sends not.

    All blocks on one stage and each on its own: what is between is tried of every method without.
    """
    base = small_recipe(network, method, ema=0.9)
    assert len({digest(train_interleaved(base, stages)) for stages in (1, 4)}) == 1


def fit(out: Path, *settings: str, resume: bool = False, **options: Any) -> ppll.Result:
    base = recipe().with_settings(["train.ema=0.9", *settings])
    return ppll.Trainer(base, out=out, resume=resume, **options).fit()


def test_a_run_goes_on_to_the_same_averages(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")
    with injected(Fault(0, 8)), pytest.raises(WorkerError):
        fit(tmp_path / "run")
    assert fit(tmp_path / "run", resume=True).weights_sha256 == whole.weights_sha256
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    plain = ppll.Trainer(recipe(), out=tmp_path / "plain").fit()
    assert plain.weights_sha256 != whole.weights_sha256


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("method", ["man", "contsup"])
def test_four_processes_break_and_one_goes_on(method: str, tmp_path: Path) -> None:
    setting = f"method.name={method}"
    whole = fit(tmp_path / "whole", setting)
    with injected(Fault(2, 8)), pytest.raises(WorkerError):
        fit(tmp_path / "run", setting, "runtime.stages=4")
    resumed = fit(tmp_path / "run", setting, resume=True)
    assert resumed.weights_sha256 == whole.weights_sha256
    assert resumed.exit_accuracy == whole.exit_accuracy


def test_whatever_uses_the_network_has_the_averages(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = fit(run)
    again = ppll.evaluate(run)
    assert again.weights_sha256 == result.weights_sha256
    assert again.exit_accuracy == result.exit_accuracy
    reader = TensorReader(run / "checkpoints" / "step-00000012")
    raw, averaged = reader.all_weights(), reader.averaged_weights()
    assert raw.keys() == averaged.keys()
    assert ppll.export(run, tmp_path / "model.safetensors") == 12
    exported = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in exported.items())
    assert not any(torch.equal(averaged[n], raw[n]) for n in exported if n.endswith("conv1.weight"))
    loaded = dict(ppll.load(run).blocks[0].named_parameters())
    assert any(torch.equal(p, averaged["stem.conv.weight"]) for p in loaded.values())


def test_a_run_can_start_from_the_averages_of_another(tmp_path: Path) -> None:
    fit(tmp_path / "run")
    averaged = TensorReader(tmp_path / "run/checkpoints/step-00000012").averaged_weights()
    setting = f"model.weights={json.dumps(str(tmp_path / 'run'))}"
    ppll.Trainer(recipe().with_settings([setting]), out=tmp_path / "next").fit()
    first = TensorReader(tmp_path / "next/checkpoints/step-00000000").all_weights()
    assert all(torch.equal(first[name], averaged[name]) for name in first)


def test_an_own_model_gets_the_averages(tmp_path: Path) -> None:
    model = own_model()
    tree = {**OWN, "train": {"epochs": 4, "ema": 0.5}}
    ppll.Trainer(tree, model=model, data=own_data(), out=tmp_path / "run").fit()
    inputs = own_data().test.inputs
    assert torch.equal(ppll.load(tmp_path / "run", model=own_model())(inputs), model(inputs))


def test_averages_can_begin_in_the_middle_where_that_is_allowed(tmp_path: Path) -> None:
    with injected(Fault(0, 8)), pytest.raises(WorkerError):
        ppll.Trainer(recipe(), out=tmp_path / "run").fit()
    with pytest.raises(RecipeError, match=r"train\.ema \(was 0\.0, is 0\.9\)"):
        fit(tmp_path / "run", resume=True)
    fit(tmp_path / "run", resume=True, allow_change=["train.ema"])
    reader = TensorReader(tmp_path / "run/checkpoints/step-00000012")
    assert reader.averaged_weights().keys() == reader.all_weights().keys()


def test_a_checkpoint_is_used_with_the_averages_that_it_has(tmp_path: Path) -> None:
    """A run that ended with averages and is to go on without has made none without yet."""
    run = tmp_path / "run"
    before = fit(run)
    with injected(Fault(0, 13)), pytest.raises(WorkerError):
        ppll.Trainer(
            recipe().with_settings(["schedule.name=constant", "train.epochs=4"]),
            out=run,
            resume=True,
            allow_change=["train.ema", "schedule", "train.epochs"],
        ).fit()
    assert RunFolder(run).read_recipe().train.ema == 0
    evaluated = ppll.evaluate(run)
    assert evaluated.test_accuracy == before.test_accuracy
    assert evaluated.weights_sha256 == before.weights_sha256
    assert evaluated.exit_accuracy == ppll.evaluate_exits(run).exit_accuracy
