"""Models of other libraries: the same bits on any placement, resumed, exported to their library."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import ppll
from ppll.blocks.block import Block
from ppll.blocks.blueprint import Blueprint
from ppll.blocks.modules import named_tensors
from ppll.data import Loader, load_dataset, prepare
from ppll.data.preparation import facts_of
from ppll.errors import ModelError, WorkerError
from ppll.job import draw_blueprint, given_network
from ppll.models import initialise
from ppll.testing import Fault
from tests.faults import injected
from tests.interleaving import digest, interleave, make_workers
from tests.libraries import (
    FAMILIES,
    OWN,
    TORCHVISION_RESNET,
    TORCHVISION_VIT,
    Family,
    environment,
    library,
)
from tests.thinning import slow_but

ALL = {**FAMILIES, "torchvision-vit": TORCHVISION_VIT, **OWN}


@pytest.fixture(params=slow_but(["gpt2", "timm-resnet", *OWN], ALL))
def family(request: pytest.FixtureRequest) -> Family:
    return ALL[request.param]


@pytest.fixture(scope="module", params=slow_but(["gpt2", "timm-resnet"], FAMILIES))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = FAMILIES[request.param]
    family.whole()  # skips where the library is missing
    out = tmp_path_factory.mktemp(request.param) / request.param
    ppll.Trainer(family.recipe(), out=out).fit()
    return out


def result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def interleaved_blocks(blueprint: Blueprint) -> list[Block]:
    """All blocks with the values that the network's layers have."""
    given = blueprint.network.named_tensors()
    blocks = [blueprint.build_block(i, torch.device("cpu")) for i in range(blueprint.num_blocks)]
    for block in blocks:
        values: dict[str, Tensor] = {}
        for prefix, module in block.modules.named():
            own = named_tensors(prefix, module)
            if not own.keys() <= given.keys():
                initialise(module, prefix, 5, given)
                values |= own
        block.load({**given, **values}, {})
    return blocks


def trained_in_any_order(
    family: Family, num_stages: int, choose: Callable[[int], int], **sections: dict[str, Any]
) -> str:
    """Hash of all that is learned by workers that take turns as ``choose`` says."""
    recipe = ppll.Recipe.from_dict(family.recipe(**sections))
    loader = Loader(prepare(load_dataset(recipe.data), recipe.data), seed=5)
    facts = facts_of(loader.data)
    blueprint = draw_blueprint(recipe, facts, given_network(family.whole(), recipe, facts))
    blocks = interleaved_blocks(blueprint)
    interleave(make_workers(blueprint, blocks, loader, num_stages, 2), choose)
    return digest(blocks)


@pytest.mark.parametrize(
    "name", slow_but(["gpt2", "timm-resnet", *OWN], [*ALL, "torchvision-resnet"])
)
def test_four_stages_in_any_order_end_with_the_bits_of_one(name: str) -> None:
    family = ALL.get(name, TORCHVISION_RESNET)
    expected = trained_in_any_order(family, 1, lambda num_able: 0)
    for seed in range(2):
        order = Random(seed)
        assert trained_in_any_order(family, 4, order.randrange) == expected


COPYING: dict[str, dict[str, Any]] = {
    "auglocal": {"name": "dgl", "auxiliary": "auglocal", "auxiliary_options": {"depth": 1}},
    "solo": {"name": "solo"},
}


@pytest.mark.parametrize(
    ("name", "method"),
    slow_but(
        [("timm-vit", "auglocal"), ("gpt2", "solo")],
        itertools.product(["timm-vit", "torchvision-vit", "gpt2", "llama"], COPYING),
    ),
)
def test_heads_like_later_layers_have_the_same_bits_on_any_placement(
    name: str, method: str
) -> None:
    section = {"method": COPYING[method]}
    expected = trained_in_any_order(ALL[name], 1, lambda num_able: 0, **section)
    assert trained_in_any_order(ALL[name], 4, Random(1).randrange, **section) == expected


def first_values(run: Path) -> dict[str, Tensor]:
    folder = run / "checkpoints" / "step-00000000"
    files = sorted(folder.glob("*.safetensors"))
    return {k: v for file in files for k, v in safetensors.torch.load_file(file).items()}


def test_what_cannot_reset_itself_draws_from_what_the_library_drew(tmp_path: Path) -> None:
    """Layer 2's values stand in the first block's head in another order."""
    family = FAMILIES["gpt2"]
    family.whole()
    recipe = family.recipe(
        method=COPYING["auglocal"], split={"cuts": [2, 3, 4]}, train={"max_steps": 1}
    )
    ppll.Trainer(recipe, out=tmp_path / "run").fit()
    found = first_values(tmp_path / "run")
    heads = [name for name in found if name.startswith("auxiliary.transformer_h_0.layers.")]
    attention = {name.partition(".attn.")[2]: name for name in heads if ".attn." in name}
    assert {"c_attn.weight", "c_attn.bias", "c_proj.weight", "c_proj.bias"} <= attention.keys()
    for own in attention.values():
        theirs = found[own.partition(".layer.")[2]]
        assert torch.equal(found[own].flatten().sort()[0], theirs.flatten().sort()[0])
        assert torch.equal(found[own], theirs) == own.endswith("bias")  # zeros


def test_a_head_that_comes_later_draws_from_what_is_trained(tmp_path: Path) -> None:
    family, out = FAMILIES["llama"], tmp_path / "run"
    family.whole()
    linear = {"name": "dgl", "auxiliary": "linear"}
    ppll.Trainer(family.recipe(method=linear, train={"max_steps": 2}), out=out).fit()
    recipe = family.recipe(method=COPYING["auglocal"])
    allowed = ("method", "train")
    result = ppll.Trainer(recipe, out=out, resume=True, allow_change=allowed).fit()
    assert result.step == 4


def test_first_values_depend_on_the_seed(tmp_path: Path) -> None:
    family = FAMILIES["gpt2"]
    family.whole()
    found = [
        ppll.Trainer(family.recipe(train={"seed": seed, "max_steps": 1}), out=tmp_path / out).fit()
        for seed, out in ((5, "one"), (5, "two"), (6, "other"))
    ]
    one, two, other = (run.weights_sha256 for run in found)
    assert one == two != other


def test_the_library_loads_what_is_exported(run: Path, tmp_path: Path) -> None:
    family, target = FAMILIES[run.name], tmp_path / "model.safetensors"
    assert ppll.export(run, target) == 4
    model, sample = family.whole().eval(), family.sample()
    model.load_state_dict(safetensors.torch.load_file(target))
    with torch.no_grad():
        assert torch.equal(family.logits(model(sample)), ppll.load(run)(sample))


def test_a_run_starts_from_what_the_library_saved(tmp_path: Path) -> None:
    family = FAMILIES["gpt2"]
    weights = tmp_path / "library.safetensors"
    model = family.whole()
    safetensors.torch.save_file(model.state_dict(), weights)
    recipe = family.recipe(model={"weights": str(weights)}, train={"max_steps": 1})
    ppll.Trainer(recipe, out=tmp_path / "run").fit()
    first = tmp_path / "run" / "checkpoints" / "step-00000000" / "block-00.safetensors"
    found = safetensors.torch.load_file(first)["transformer.wte.weight"]
    assert torch.equal(found, model.state_dict()["transformer.wte.weight"])


def test_every_exit_is_evaluated_again(run: Path) -> None:
    assert list(ppll.evaluate(run).exit_accuracy) == result(run)["exit_accuracy"]


def test_a_run_that_died_goes_on_to_the_same_bits(run: Path, tmp_path: Path) -> None:
    recipe = FAMILIES[run.name].recipe()
    with injected(Fault(0, 3)), pytest.raises(WorkerError):
        ppll.Trainer(recipe, out=tmp_path / "run").fit()
    again = ppll.Trainer(recipe, out=tmp_path / "run", resume=True).fit()
    assert again.weights_sha256 == result(run)["weights_sha256"]


def test_a_given_model_holds_the_trained_values(family: Family, tmp_path: Path) -> None:
    model = family.whole()
    recipe = family.recipe()
    del recipe["model"]
    ppll.Trainer(recipe, model=model, out=tmp_path / "run").fit()
    loaded = ppll.load(tmp_path / "run", model=family.whole())
    with torch.no_grad():
        assert torch.equal(family.logits(model.eval()(family.sample())), loaded(family.sample()))


def command(*args: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ppll", *args],
        env=environment(OMP_NUM_THREADS="1", COLUMNS="200"),
        text=True,
        capture_output=True,
        timeout=110,
    )
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.mark.processes
@pytest.mark.timeout(300)  # two commands of a minute each, on a machine that does other things, too
@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm-vit", "gpt2"])
def test_a_run_on_one_stage_goes_on_with_four_processes(name: str, tmp_path: Path) -> None:
    family, recipe = FAMILIES[name], tmp_path / "recipe.toml"
    family.whole()
    recipe.write_text(ppll.Recipe.from_dict(family.recipe()).to_toml())
    whole = ppll.Trainer(family.recipe(), out=tmp_path / "whole").fit()
    run = str(tmp_path / "run")
    command("train", str(recipe), "--out", run, "--set", "train.max_steps=2", "--quiet")
    command("train", str(recipe), "--out", run, "--stages", "4", "--resume", "--quiet")
    assert result(tmp_path / "run")["num_stages"] == 4
    assert result(tmp_path / "run")["weights_sha256"] == whole.weights_sha256


def test_tied_embeddings_are_untied_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family = FAMILIES["gpt2"]
    family.whole()
    ppll.Trainer(family.recipe(train={"max_steps": 1}), out=tmp_path / "run").fit()
    assert "lm_head.weight of the GPT2LMHeadModel is tied to transformer.wte.weight" in caplog.text
    assert "untie = true" in (tmp_path / "run" / "config.toml").read_text()


def test_tied_embeddings_are_refused_if_they_are_to_stay(tmp_path: Path) -> None:
    family = FAMILIES["gpt2"]
    family.whole()
    with pytest.raises(ModelError, match=r"lm_head\.weight .* is tied .* split\.untie = true"):
        ppll.Trainer(family.recipe(split={"untie": False}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_layers_that_need_a_mask_are_refused() -> None:
    transformers = library("transformers")
    config = FAMILIES["llama"].whole().config
    config._attn_implementation = "eager"
    model = transformers.LlamaForCausalLM(config)
    with pytest.raises(ModelError, match=r"'model.layers.0' is given 'attention_mask', a Tensor"):
        ppll.split(model, FAMILIES["llama"].sample())


def test_a_network_that_branches_is_refused_by_the_name_of_the_tensor() -> None:
    timm = library("timm")
    model = timm.create_model("hrnet_w18_small", num_classes=5)
    with pytest.raises(ModelError, match=r"before layer .*'layer1' \(Sequential\) of the stem is"):
        ppll.split(model, torch.randn(2, 3, 64, 64))
