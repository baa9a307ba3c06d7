"""Language models keep the contracts of all others, and nothing sees what it is to predict."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch

import ppll
from ppll.auxiliary import auxiliaries
from ppll.config import Recipe
from ppll.data import Dataset
from ppll.errors import ModelError
from ppll.message import FEATURES, Kind, Message
from ppll.methods import methods
from ppll.models import models
from ppll.planning.measuring import measure
from ppll.recipe_files import load_recipe
from tests.interleaving import (
    NUM_CLASSES,
    TEXT_NETWORKS,
    MadeUpText,
    blueprint_of,
    built_blocks,
    digest,
    small_recipe,
    train_interleaved,
)
from tests.thinning import slow_but

WORKING = ["auglocal", "dgl", "greedy", "lopt", "man", "manpp", "sgr", "solo", "zerolock"]
"""Local methods of the zoo that train a language model."""
READING_AHEAD = ["contsup", "infopro", "predsim", "scpl", "sedona"]
"""Those whose auxiliary networks see all tokens of a row at once, or an image."""
READABLE = ["auglocal", "frozen-readout", "linear", "mlp-sr"]
"""Auxiliary networks that read every token by itself or with those before."""
LENGTH, NUM_TOKENS = 8, 16


def text_recipe(network: str, method: str, *settings: str, **train: object) -> Recipe:
    """LoPT's weight is made for wide models, and too much for these."""
    own = ["method.weight=1"] if method == "lopt" else []
    recipe = small_recipe(network, method, "adamw", **train)
    return recipe.with_settings([*own, *settings])


@functools.cache
def sequential_digest(network: str, method: str) -> str:
    blocks = train_interleaved(text_recipe(network, method), 1, batches=MadeUpText())
    return digest(blocks)


def test_every_method_of_the_zoo_is_in_one_list() -> None:
    local = [entry.name for entry in methods if not entry.build.end_to_end]
    assert sorted([*WORKING, *READING_AHEAD]) == local


@hypothesis.settings(max_examples=4, deadline=None, derandomize=True)
@hypothesis.given(
    method=st.sampled_from(WORKING),
    network=st.sampled_from([*TEXT_NETWORKS]),
    num_stages=st.sampled_from([2, 3, 4]),
    capacity=st.sampled_from([1, 2, 8]),
    random=st.randoms(use_true_random=False),
)
def test_no_interleaving_changes_a_bit(method, network, num_stages, capacity, random) -> None:
    blocks = train_interleaved(
        text_recipe(network, method),
        num_stages,
        capacity=capacity,
        choose=random.randrange,
        batches=MadeUpText(),
    )
    assert digest(blocks) == sequential_digest(network, method)


@pytest.mark.parametrize("method", slow_but(["backprop", "sgr"], [*WORKING, "backprop"]))
def test_every_exit_learns(method: str) -> None:
    """Three tokens that follow each other in turn, but for a tenth of noise."""
    recipe = text_recipe("gpt-rotary", method, epochs=12, evaluate_every=0)
    blocks = train_interleaved(recipe, 1, batches=MadeUpText())
    message = Message(
        kind=Kind.EVALUATE, sequence=0, step=1, tensors=MadeUpText().train_batch(0, 0)
    )
    for block in blocks:
        message = block.forward(message)
        block.evaluate()
    tallies = [block.counts.take() for block in blocks]
    assert [tally.samples for tally in tallies] == [6 * LENGTH] * len(blocks)
    exits = [tally for tally in tallies if not math.isnan(tally.accuracy)]
    assert len(exits) == (1 if method == "lopt" else len(blocks))
    assert all(tally.loss < 0.8 * math.log(NUM_CLASSES) for tally in exits)
    assert all(tally.accuracy > 0.7 for tally in exits)


@pytest.mark.parametrize("network", TEXT_NETWORKS)
@pytest.mark.parametrize("method", WORKING)
def test_no_exit_sees_what_it_is_to_predict(method: str, network: str) -> None:
    batches = MadeUpText()
    blocks = built_blocks(blueprint_of(text_recipe(network, method), batches))
    tensors = dict(batches.train_batch(0, 0))
    changed = {**tensors, FEATURES: tensors[FEATURES].clone()}
    changed[FEATURES][:, 5:] = (changed[FEATURES][:, 5:] + 1) % NUM_CLASSES
    predictions = []
    for fields in (tensors, changed):
        message = Message(kind=Kind.EVALUATE, sequence=0, step=1, tensors=fields)
        for block in blocks:
            message = block.forward(message)
            logits = block.method.exit(block.modules.auxiliary, message.features)
            if logits is not None:
                predictions.append(logits)
    half = len(predictions) // 2
    for before, after in zip(predictions[:half], predictions[half:], strict=True):
        assert before.shape == (6, LENGTH, NUM_CLASSES)
        assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
        assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-4)


@pytest.mark.parametrize("method", READING_AHEAD)
def test_methods_that_read_ahead_are_refused(method: str) -> None:
    blueprint = blueprint_of(text_recipe("gpt", method), MadeUpText())
    with pytest.raises(ModelError, match=r"follow it|image|every token has a target"):
        _ = [blueprint.outline(index) for index in range(blueprint.num_blocks)]


@pytest.mark.parametrize(
    ("method", "setting", "words"),
    [
        ("infopro", "objective=softmax", r"^method 'infopro' reconstructs images"),
        ("infopro", "objective=contrast", r"^method 'infopro' reconstructs images"),
        ("contsup", "context=E", r"^context 'E' encodes images"),
        ("contsup", "context=R1", r"^context 'R1' adds what the block before has read"),
    ],
)
def test_what_no_auxiliary_network_would_mend_is_said_first(
    method: str, setting: str, words: str
) -> None:
    blueprint = blueprint_of(text_recipe("gpt", method, f"method.{setting}"), MadeUpText())
    with pytest.raises(ModelError, match=words + r".* another method\.name\.$"):
        blueprint.outline(0)


@pytest.mark.parametrize("auxiliary", sorted({e.name for e in auxiliaries} - {*READABLE}))
def test_auxiliary_networks_that_read_ahead_are_refused(auxiliary: str) -> None:
    recipe = text_recipe("gpt", "dgl", f"method.auxiliary={auxiliary}")
    with pytest.raises(ModelError, match=r"follow it.*method\.auxiliary = 'linear'"):
        blueprint_of(recipe, MadeUpText()).outline(0)


def tokens(num_rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(NUM_TOKENS, (num_rows, 1), generator=generator) + torch.arange(LENGTH + 1)
    rows = (rows % NUM_TOKENS).to(torch.uint8)
    return rows[:, :-1], rows[:, 1:]


def dataset() -> Dataset:
    return Dataset.from_arrays(train=tokens(32, 0), test=tokens(12, 1), num_classes=NUM_TOKENS)


def run_recipe(method: str, *settings: str) -> Recipe:
    """A run of sixteen steps on tokens that are given from Python."""
    own = ["method.weight=1"] if method == "lopt" else []
    tree = {
        "data": {"batch_size": 8},
        "model": TEXT_NETWORKS["gpt"],
        "method": {"name": method},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "train": {"epochs": 4},
        "checkpoint": {"every_steps": 6},
    }
    return Recipe.from_dict(tree).with_settings([*own, *settings])


def test_a_run_reports_the_perplexity_of_every_exit(tmp_path: Path) -> None:
    result = ppll.Trainer(run_recipe("dgl"), data=dataset(), out=tmp_path / "run").fit()
    assert result.exit_perplexity is not None
    assert result.test_perplexity == result.exit_perplexity[-1]
    assert all(1 < found < NUM_TOKENS for found in result.exit_perplexity if found is not None)
    data, network = dataset(), ppll.load(tmp_path / "run")
    inputs, targets = data.test.inputs.long(), data.test.targets.long()
    for logits, found in zip(network.exits(inputs), result.exit_perplexity, strict=True):
        assert logits is not None
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        assert loss.exp().item() == pytest.approx(found, rel=1e-5)
    report = ppll.evaluate_exits(tmp_path / "run")
    assert report.num_samples == 12 * LENGTH
    assert report.exit_accuracy == pytest.approx(result.exit_accuracy)


def test_a_block_without_a_prediction_has_no_perplexity(tmp_path: Path) -> None:
    result = ppll.Trainer(run_recipe("lopt"), data=dataset(), out=tmp_path / "run").fit()
    assert result.exit_perplexity is not None
    assert result.exit_perplexity[:-1] == (None,) * 3
    assert result.test_perplexity is not None


@pytest.mark.slow
@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.processes
def test_a_shared_readout_goes_on_with_what_was_on_its_way(stages: int, tmp_path: Path) -> None:
    """With a lag of five, copies from before the checkpoint of step 6 are used after it."""
    base = run_recipe("solo", "method.lag=5", "schedule.name=constant")
    straight = ppll.Trainer(base, data=dataset(), out=tmp_path / "straight").fit()
    first = base.with_settings(["train.max_steps=6", "runtime.stages=4"])
    ppll.Trainer(first, data=dataset(), out=tmp_path / "run").fit()
    rest = base.with_settings([f"runtime.stages={stages}"])
    result = ppll.Trainer(rest, data=dataset(), out=tmp_path / "run", resume=True).fit()
    assert result.weights_sha256 == straight.weights_sha256


def test_a_shared_readout_is_late_by_the_lag() -> None:
    """After t steps an auxiliary network holds the last layer as it was after t - lag."""
    batches, lag = MadeUpText((6,) * 5), 2
    recipe = text_recipe("gpt-rotary", "solo", f"method.lag={lag}", "train.epochs=1")
    head = built_blocks(blueprint_of(recipe, batches))[-1].published_parameters()
    for steps in (1, 3, 5):
        shorter = recipe.with_settings([f"train.max_steps={steps}", "schedule.name=constant"])
        blocks = train_interleaved(shorter, 2, batches=batches)
        seen = steps - lag
        if seen > 0:
            before = shorter.with_settings([f"train.max_steps={seen}"])
            wanted = train_interleaved(before, 1, batches=batches)[-1].published_parameters()
        else:
            wanted = head
        for block in blocks[:-1]:
            assert block.modules.auxiliary is not None
            copied = block.modules.auxiliary.readout.parameters()
            assert torch.equal(torch.cat([p.flatten() for p in copied]), wanted)


def test_a_frozen_readout_is_the_head_that_was_trained(tmp_path: Path) -> None:
    ppll.Trainer(run_recipe("backprop"), data=dataset(), out=tmp_path / "whole").fit()
    settings = [f"model.weights={tmp_path / 'whole'}", "model.lora_rank=2"]
    settings += ["method.auxiliary=frozen-readout", "method.auxiliary_options.adapter=3"]
    fine = run_recipe("zerolock", *settings)
    ppll.Trainer(fine, data=dataset(), out=tmp_path / "fine").fit()
    network, head = ppll.load(tmp_path / "fine"), ppll.load(tmp_path / "whole").blocks[-1][-1]
    assert len(network.auxiliaries) == 3
    for auxiliary in network.auxiliaries:
        found = dict(auxiliary.readout.layer.named_parameters())
        assert found.keys() == dict(head.named_parameters()).keys()
        assert all(torch.equal(found[name], p) for name, p in head.named_parameters())
        assert auxiliary.adapter.up.any()


def test_smoothed_losses_are_no_perplexities(tmp_path: Path) -> None:
    recipe = run_recipe("dgl", "train.label_smoothing=0.1", "train.max_steps=2")
    result = ppll.Trainer(recipe, data=dataset(), out=tmp_path / "run").fit()
    assert result.exit_perplexity is None
    assert result.test_perplexity is None


@pytest.mark.parametrize("method", slow_but(["man"], ["dgl", "zerolock", "man", "lopt", "solo"]))
@pytest.mark.processes
def test_four_stages_compute_what_one_does(method: str, tmp_path: Path) -> None:
    hashes = {
        ppll.Trainer(
            run_recipe(method, f"runtime.stages={stages}"), data=dataset(), out=tmp_path / stages
        )
        .fit()
        .weights_sha256
        for stages in ("1", "4")
    }
    assert len(hashes) == 1


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_goes_on_with_another_number_of_stages(tmp_path: Path) -> None:
    whole = ppll.Trainer(run_recipe("zerolock"), data=dataset(), out=tmp_path / "whole").fit()
    half = run_recipe("zerolock", "schedule.name=constant")
    straight = ppll.Trainer(half, data=dataset(), out=tmp_path / "straight").fit()
    assert straight.weights_sha256 != whole.weights_sha256  # the schedule counts
    first = half.with_settings(["train.epochs=2", "runtime.stages=2"])
    ppll.Trainer(first, data=dataset(), out=tmp_path / "run").fit()
    rest = half.with_settings(["runtime.stages=3"])
    result = ppll.Trainer(rest, data=dataset(), out=tmp_path / "run", resume=True).fit()
    assert result.step == straight.step
    assert result.weights_sha256 == straight.weights_sha256


def exported(run: Path) -> dict[str, torch.Tensor]:
    """The state dict of a run's un-split model."""
    file = run.with_suffix(".safetensors")
    ppll.export(run, file)
    return safetensors.torch.load_file(file)


def test_what_is_exported_is_the_whole_model(tmp_path: Path) -> None:
    ppll.Trainer(run_recipe("dgl"), data=dataset(), out=tmp_path / "run").fit()
    options = {k: v for k, v in TEXT_NETWORKS["gpt"].items() if k != "name"}
    whole = models.build("gpt", options, (LENGTH,), NUM_TOKENS).as_module().eval()
    whole.load_state_dict(exported(tmp_path / "run"))
    inputs = dataset().test.inputs.long()
    with torch.no_grad():
        assert torch.equal(whole(inputs), ppll.load(tmp_path / "run")(inputs))


def test_low_rank_additions_start_from_a_network_without(tmp_path: Path) -> None:
    whole = ppll.Trainer(run_recipe("backprop"), data=dataset(), out=tmp_path / "whole").fit()
    settings = [f"model.weights={tmp_path / 'whole'}", "model.lora_rank=2"]
    fine = ppll.Trainer(run_recipe("dgl", *settings), data=dataset(), out=tmp_path / "fine").fit()
    assert fine.weights_sha256 != whole.weights_sha256
    before, after = (exported(tmp_path / name) for name in ("whole", "fine"))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    added = {name for name in after if name.endswith("lora_up")}
    assert len(added) == 4 * 4
    assert all(after[name].any() for name in added)


def test_layers_of_a_language_model_can_be_measured() -> None:
    settings = ["model.width=16", "model.depth=4", "data.batch_size=2", "data.length=16"]
    costs = measure(load_recipe("text-gpt", settings), repeats=1)
    assert [layer.name for layer in costs.layers] == [
        "stem",
        *(f"layer{i}" for i in range(4)),
        "head",
    ]
    assert all(layer.forward_s > 0 for layer in costs.layers)
    assert costs.layers[0].features_bytes == 2 * 16 * 16 * 4
