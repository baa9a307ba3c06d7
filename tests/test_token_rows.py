"""One class for a row of tokens: every method, placement and command that images have."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from torch import nn

import ppll
from ppll.auxiliary import auxiliaries
from ppll.auxiliary_share import auxiliary_share
from ppll.cli.app import main
from ppll.config import Recipe
from ppll.errors import DataError, ModelError, UsageError, WorkerError
from ppll.message import Kind, Message
from ppll.methods import methods
from ppll.planning.measuring import measure
from ppll.sections import ModelConfig
from ppll.testing import Fault, check_placements
from tests.faults import injected
from tests.interleaving import (
    NUM_CLASSES,
    blueprint_of,
    built_blocks,
    digest,
    small_recipe,
    train_interleaved,
)
from tests.libraries import library
from tests.thinning import slow_but
from tests.token_rows import LENGTH, NUM_TOKENS, MadeUpRows, classifier, dataset, rows

WORKING = [
    *("auglocal", "dgl", "greedy", "lopt", "man", "manpp", "predsim", "scpl"),
    *("sedona", "sgr", "solo", "zerolock"),
]
"""Local methods of the zoo that train on rows of tokens with one class each."""
READING_IMAGES = ["contsup", "infopro"]
"""Those that read an image."""
WITHOUT_EXITS = ["lopt", "scpl"]
"""Methods whose blocks but the last make no prediction."""
CLASSIFIER = "tests.token_rows:classifier"


def recipe(method: str, *settings: str, **train: object) -> Recipe:
    base = small_recipe(method=method, optimizer="adamw", **train)
    base = base.model_copy(update={"model": ModelConfig(name=CLASSIFIER)})
    own = {"lopt": ["method.weight=1"], "scpl": ["method.projection=16"]}.get(method, [])
    return base.with_settings([*own, *settings])


@functools.cache
def sequential_digest(method: str) -> str:
    return digest(train_interleaved(recipe(method), 1, batches=MadeUpRows()))


def test_every_method_of_the_zoo_is_in_one_list() -> None:
    local = [entry.name for entry in methods if not entry.build.end_to_end]
    assert sorted([*WORKING, *READING_IMAGES]) == local


@hypothesis.settings(max_examples=8, deadline=None, derandomize=True)
@hypothesis.given(
    method=st.sampled_from(WORKING),
    num_stages=st.sampled_from([2, 3, 4]),
    capacity=st.sampled_from([1, 2, 8]),
    random=st.randoms(use_true_random=False),
)
def test_no_interleaving_changes_a_bit(method, num_stages, capacity, random) -> None:
    blocks = train_interleaved(
        recipe(method),
        num_stages,
        capacity=capacity,
        choose=random.randrange,
        batches=MadeUpRows(),
    )
    assert digest(blocks) == sequential_digest(method)


@pytest.mark.parametrize("method", slow_but(["backprop", "scpl"], [*WORKING, "backprop"]))
def test_every_exit_learns(method: str) -> None:
    blocks = train_interleaved(
        recipe(method, "optimizer.lr=0.02", epochs=20, evaluate_every=0), 1, batches=MadeUpRows()
    )
    message = Message(
        kind=Kind.EVALUATE, sequence=0, step=1, tensors=MadeUpRows().train_batch(0, 0)
    )
    for block in blocks:
        message = block.forward(message)
        block.evaluate()
    tallies = [block.counts.take() for block in blocks]
    assert [tally.samples for tally in tallies] == [6] * len(blocks)
    exits = [tally for tally in tallies if not math.isnan(tally.accuracy)]
    assert len(exits) == (1 if method in WITHOUT_EXITS else len(blocks))
    assert all(tally.accuracy > 0.6 for tally in exits)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("infopro", r"'infopro' reconstructs images"),
        ("contsup", r"'E' encodes images .*\(7,\): choose another method\.name"),
    ],
)
def test_methods_that_read_an_image_are_refused(method: str, words: str) -> None:
    blueprint = blueprint_of(recipe(method), MadeUpRows())
    with pytest.raises(ModelError, match=words):
        _ = [blueprint.outline(index) for index in range(blueprint.num_blocks)]


@pytest.mark.parametrize("method", ["contsup", "backprop"])
def test_tokens_are_no_context(method: str) -> None:
    blueprint = blueprint_of(recipe(method, "method.context=R1"), MadeUpRows())
    remedy = {"contsup": "choose another method.name", "backprop": "leave method.context out"}
    words = rf"'R1' adds what .* the first block reads whole numbers, tokens: {remedy[method]}\.$"
    with pytest.raises(ModelError, match=words):
        _ = [blueprint.outline(index) for index in range(blueprint.num_blocks)]


@pytest.mark.parametrize("auxiliary", [entry.name for entry in auxiliaries])
def test_every_auxiliary_network_reads_rows(auxiliary: str) -> None:
    blueprint = blueprint_of(recipe("dgl", f"method.auxiliary={auxiliary}"), MadeUpRows())
    blocks, batch = built_blocks(blueprint), MadeUpRows().train_batch(0, 0)
    message = Message(kind=Kind.EVALUATE, sequence=0, step=1, tensors=batch)
    for block in blocks:
        message = block.forward(message)
        logits = block.method.exit(block.modules.auxiliary, message.features)
        assert logits is not None
        assert logits.shape == (6, NUM_CLASSES)


def test_heads_pool_over_all_rows() -> None:
    """As they do where tokens lie on an image like patches, and no class token stands before."""
    blueprint = blueprint_of(recipe("greedy"), MadeUpRows())
    block = built_blocks(blueprint)[1]
    features = torch.randn(2, LENGTH, 8)
    logits = block.method.exit(block.modules.auxiliary, features)
    turned = block.method.exit(block.modules.auxiliary, features.roll(3, dims=1))
    assert logits is not None
    assert turned is not None
    assert torch.allclose(logits, turned, atol=1e-6)


@pytest.mark.parametrize("method", ["dgl", "lopt", "sgr"])
def test_what_a_method_adds_is_counted(method: str) -> None:
    share = auxiliary_share(blueprint_of(recipe(method), MadeUpRows()))
    assert share.compute > 0
    assert share.parameters > 0


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"name": "gpt"}, r"\(7, 3\) a sample.*must be \(3,\).*every token, as 'gpt' does.*mean"),
        ({"name": "resnet"}, r"takes images"),
    ],
)
def test_networks_that_do_not_fit_are_refused(network: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ppll.Trainer({"model": network, "data": {"batch_size": 8}}, data=dataset())


def test_the_largest_token_is_tried_before_anything_trains() -> None:
    words = rf"\(Embedding\) reads token 0 but not {NUM_TOKENS - 1}, the largest of .*IndexError"
    with pytest.raises(ModelError, match=words):
        ppll.Trainer(
            {"split": {"blocks": 1}, "data": {"batch_size": 8}},
            model=[nn.Embedding(NUM_TOKENS - 1, 8), nn.Flatten(), nn.Linear(8 * LENGTH, 3)],
            data=dataset(),
        )


def test_floating_point_is_no_row_of_tokens() -> None:
    rows, classes = torch.zeros(20, 3), torch.arange(20) % 2
    data = ppll.Dataset.from_arrays(train=(rows, classes), test=(rows, classes))
    model = [nn.Embedding(5, 8), nn.Flatten(), nn.Linear(24, 2)]
    with pytest.raises(ModelError, match=r"where they are tokens, give whole numbers \(N, T\)\.$"):
        ppll.Trainer({"split": {"blocks": 1}, "data": {"batch_size": 8}}, model=model, data=data)


def test_a_table_of_whole_numbers_is_no_row_of_tokens() -> None:
    model = [nn.Linear(LENGTH, 8), nn.Linear(8, NUM_CLASSES)]
    recipe = {"split": {"blocks": 2}, "data": {"batch_size": 8}}
    with pytest.raises(ModelError, match=r"are tokens: give floating point where they are quant"):
        ppll.Trainer(recipe, model=model, data=dataset())


def run_recipe(method: str, *settings: str) -> Recipe:
    """A run of twelve steps, with a checkpoint after six."""
    tree = {
        "data": {"batch_size": 8},
        "split": {"blocks": 4},
        "method": {"name": method},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "schedule": {"name": "constant"},
        "train": {"epochs": 4},
        "checkpoint": {"every_steps": 6},
    }
    return Recipe.from_dict(tree).with_settings(settings)


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(*classifier())


def trained(out: Path, *settings: str, method: str = "zerolock", **options: bool) -> ppll.Result:
    recipe = run_recipe(method, *settings)
    return ppll.Trainer(recipe, model=network(), data=dataset(), out=out, **options).fit()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_tokens_of_any_type_are_the_same(dtype: torch.dtype, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    data = dataset(dtype)
    trainer = ppll.Trainer(run_recipe("zerolock"), model=network(), data=data, out=tmp_path / "run")
    assert trainer.fit().weights_sha256 == whole.weights_sha256


def test_a_run_goes_on_and_is_tested_again(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    with injected(Fault(0, 8)), pytest.raises(WorkerError):
        trained(tmp_path / "run")
    result = trained(tmp_path / "run", resume=True)
    assert result.weights_sha256 == whole.weights_sha256
    assert result.exit_perplexity is None
    again = ppll.evaluate(tmp_path / "run", model=network())
    assert again.exit_accuracy == whole.exit_accuracy


def test_what_is_trained_predicts_as_it_was_tested(tmp_path: Path) -> None:
    result = trained(tmp_path / "run")
    test = dataset().test
    loaded = ppll.load(tmp_path / "run", model=network())
    with torch.no_grad():
        exits, logits = loaded.exits(test.inputs), loaded(test.inputs.to(torch.uint8))
    for found, accuracy in zip(exits, result.exit_accuracy, strict=True):
        assert found is not None
        assert (found.argmax(1) == test.targets).float().mean() == pytest.approx(accuracy)
    ppll.export(tmp_path / "run", tmp_path / "model.safetensors")
    plain = network().eval()
    plain.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(plain(test.inputs), logits)
    report = ppll.measure_exits(loaded, test.inputs.to(torch.int32), test.targets)
    assert report.exit_accuracy == pytest.approx(result.exit_accuracy)
    assert report.num_samples == len(test)
    found = ppll.evaluate_exits(tmp_path / "run", model=network())
    assert found.exit_accuracy == report.exit_accuracy


def test_other_samples_than_rows_of_its_tokens_are_refused(tmp_path: Path) -> None:
    trained(tmp_path / "run", "train.max_steps=1")
    loaded, (tokens, classes) = ppll.load(tmp_path / "run", model=network()), rows(4)
    for inputs, targets, words in (
        (tokens.float(), classes, r"trained with samples that are rows of tokens.*without"),
        (tokens, tokens % NUM_CLASSES, r"trained without a target for every token.*with"),
        (tokens + NUM_TOKENS, classes, r"tokens go from 2\d to .* trained on 20 .* 0 to 19"),
    ):
        with pytest.raises(DataError, match=words):
            ppll.measure_exits(loaded, inputs, targets)
    with pytest.raises(ModelError, match=r"trained on tokens, found torch\.float32"):
        loaded(tokens.float())


def test_another_vocabulary_is_other_data() -> None:
    facts = MadeUpRows().facts
    larger = dataclasses.replace(facts, num_tokens=NUM_TOKENS + 1)
    assert larger.differences(facts) == ["num_tokens (was 20, is 21)"]


def bert(transformers: Any, family: str) -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = getattr(transformers, f"{family}Config")(
        **sizes,
        vocab_size=NUM_TOKENS,
        intermediate_size=24,
        max_position_embeddings=LENGTH + 3,
        num_labels=NUM_CLASSES,
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForSequenceClassification")(config)


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_encoders_of_hugging_face_are_cut(family: str, tmp_path: Path) -> None:
    transformers = library("transformers")
    model = bert(transformers, family)
    recipe = run_recipe("dgl", "train.max_steps=2")
    result = ppll.Trainer(recipe, model=model, data=dataset(), out=tmp_path / "run").fit()
    assert len(result.exit_accuracy) == 4
    ppll.export(tmp_path / "run", tmp_path / "model.safetensors")
    other, test = bert(transformers, family).eval(), dataset().test.inputs
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        trained = ppll.load(tmp_path / "run", model=bert(transformers, family))
        assert torch.equal(trained(test), other(test).logits)


def test_an_encoder_that_computes_before_its_head_is_refused() -> None:
    transformers = library("transformers")
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": NUM_TOKENS}
    config = transformers.DistilBertConfig(**sizes, num_labels=NUM_CLASSES)
    model = transformers.DistilBertForSequenceClassification(config)
    with pytest.raises(ModelError, match="compute something else than its own forward"):
        ppll.Trainer(run_recipe("dgl"), model=model, data=dataset())


@pytest.mark.processes
def test_two_processes_compute_what_one_does() -> None:
    recipe = run_recipe("zerolock")
    check_placements(recipe, model=network(), data=dataset(), stages=(1, 2), max_steps=4)


def named_recipe(*settings: str) -> Recipe:
    """Data and network that a recipe names, for the commands that read recipes alone."""
    data = {"name": "synthetic", "shape": [LENGTH], "num_tokens": NUM_TOKENS}
    sizes = {"num_classes": NUM_CLASSES, "num_train": 24, "num_test": 12}
    base = run_recipe("dgl").model_dump(mode="json", exclude_unset=True)
    tree = {**base, "data": {**data, **sizes, "batch_size": 8}, "model": {"name": CLASSIFIER}}
    return Recipe.from_dict(tree).with_settings(settings)


@pytest.mark.parametrize("method", ["dgl", "lopt", "scpl"])
def test_layers_and_exits_are_measured(method: str) -> None:
    settings = [f"method.name={method}"]
    costs = measure(named_recipe(*settings), repeats=1)
    assert len(costs.layers) == len(costs.exits) == 6
    assert costs.layers[0].features_bytes == 8 * LENGTH * 8 * 4


def test_commands_plan_train_and_test_what_a_recipe_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, planned, out = (tmp_path / name for name in ("a.toml", "b.toml", "run"))
    file.write_text(named_recipe('split.cuts="balanced"').to_toml(), encoding="utf-8")
    command(monkeypatch, "plan", str(file), "--stages=2", f"--write={planned}")
    command(monkeypatch, "train", str(planned), f"--out={out}", "--quiet")
    trained = json.loads((out / "result.json").read_text())
    capsys.readouterr()
    command(monkeypatch, "eval", str(out), "--json")
    assert json.loads(capsys.readouterr().out)["exit_accuracy"] == trained["exit_accuracy"]


@pytest.mark.slow
def test_a_study_has_a_row_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, table = tmp_path / "a.toml", tmp_path / "study.json"
    file.write_text(named_recipe("train.max_steps=2").to_toml(), encoding="utf-8")
    command(monkeypatch, "study", str(file), "--seeds=1", f"--out={tmp_path}/s", f"--json={table}")
    (row,) = json.loads(table.read_text())["rows"]
    assert len(row["exit_accuracy"]) == 4


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ppll", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
