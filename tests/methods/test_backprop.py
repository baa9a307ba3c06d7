"""Backprop as a control: with the context and the exits that local methods have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import ppll
from ppll.blocks.block import Block
from ppll.errors import RecipeError
from ppll.message import Kind, Message
from ppll.methods import HeadMethod, Lesson
from ppll.site import BlockSite
from tests.interleaving import NETWORKS, MadeUpBatches, blueprint_of, built_blocks, small_recipe
from tests.methods.trials import blocks_after_a_step, built, recipe_with

every_network = pytest.mark.parametrize("network", NETWORKS)
TINY = ["data.train_limit=120", "train.epochs=1", "model.depth=14", "model.width=4"]


def names(blocks: list[Block]) -> set[str]:
    return {name for block in blocks for name, _ in block.modules.named_tensors()}


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, targets)


@every_network
@pytest.mark.parametrize("context", ["E", "R1", "R1E"])
def test_it_trains_the_tensors_that_contsup_has(context: str, network: str) -> None:
    """Under the same names, so that either may start from what the other has learned."""
    local = recipe_with("contsup", network, f"context={context}", "auxiliary=linear")
    end_to_end = recipe_with("backprop", network, f"context={context}", "exits=linear")
    blocks = blocks_after_a_step(end_to_end)
    assert len(blocks) == 1
    assert names(blocks) == names(built_blocks(blueprint_of(local, MadeUpBatches())))


@pytest.mark.parametrize("context", ["E", "R1E"])
def test_its_forward_is_that_of_the_local_network(context: str) -> None:
    """With the same values, all exits say the same."""
    blueprints = [
        blueprint_of(recipe_with(*about, f"context={context}"), MadeUpBatches())
        for about in (("contsup", "resnet", "auxiliary=linear"), ("backprop", "resnet"))
    ]
    local, (whole,) = (built_blocks(blueprint) for blueprint in blueprints)
    message = Message(
        kind=Kind.EVALUATE, sequence=0, step=1, tensors=MadeUpBatches().train_batch(0, 0)
    )
    found = whole.forward(message).features
    for block in local:
        message = block.forward(message)
    torch.testing.assert_close(found, message.features)


@every_network
def test_by_itself_it_is_the_plain_network_and_reads_no_cuts(network: str) -> None:
    blueprint = blueprint_of(small_recipe(network, "backprop", split_blocks=99), MadeUpBatches())
    found = names(built_blocks(blueprint))
    assert found == set(blueprint.network.as_module().state_dict())


def test_the_loss_weighs_the_exits_and_the_prediction_is_their_mean() -> None:
    method = built("backprop", exits="linear", exit_weight=0.5)
    features, targets = torch.randn(5, 3, 4), torch.tensor([0, 1, 2, 3, 0])
    lesson = Lesson(features, features, targets)
    loss = method.local_loss(None, lesson, cross_entropy)
    early, later, final = (cross_entropy(features[:, i], targets) for i in range(3))
    torch.testing.assert_close(loss.value, final + 0.5 * (early + later))
    mean = features.double().softmax(-1).mean(1).log().float()
    torch.testing.assert_close(method.exit(None, features), mean)


def test_a_context_asks_for_the_image_only_where_it_reads_it() -> None:
    assert built("backprop").fields == ()
    assert built("backprop", context="R1").fields == ()
    assert built("backprop", context="R1E").fields == ("image",)


def test_an_exit_stands_behind_every_cut() -> None:
    recipe = recipe_with("backprop", "resnet", "exits=strided-separable")
    modules = blueprint_of(recipe, MadeUpBatches()).outline(0)
    assert len(modules.auxiliaries()) == 3
    assert modules.auxiliary is None


@pytest.mark.parametrize("setting", ["method.exits=linear", "method.context=E"])
def test_exits_and_context_need_a_cut(setting: str) -> None:
    """Without, the logits of all classes would be taken for those of so many exits, and a control
    would lack the context that it was to have."""
    recipe = small_recipe(method="backprop", split_blocks=1).with_settings([setting])
    with pytest.raises(
        RecipeError, match=r"split\.blocks = 1 makes none: .* method\.exits and .* out"
    ):
        blueprint_of(recipe, MadeUpBatches())


@pytest.mark.parametrize("options", [{"hiden": 4}, {"hidden": "many"}])
def test_options_of_exits_are_called_by_their_own_key(options: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=r"method\.exit_options\.hid"):
        built("backprop", exits="conv-2fc", exit_options=options)


def test_options_of_exits_need_exits() -> None:
    with pytest.raises(RecipeError, match=r"exit_options are those of method\.exits: name"):
        built("backprop", exit_options={"hidden": 4})


class Whole(HeadMethod):
    """One loss for the whole network, with a head behind every cut."""

    default_auxiliary = "linear"
    end_to_end = True


class Uncut(Whole):
    """The same without heads, since it puts nothing at a cut."""

    reads_cuts = False


def test_a_class_that_reads_no_cuts_needs_none() -> None:
    uncut, whole = (
        small_recipe(method=f"{__name__}:{kind}", split_blocks=1) for kind in ("Uncut", "Whole")
    )
    assert blueprint_of(uncut, MadeUpBatches()).outline(0).auxiliary is None
    with pytest.raises(RecipeError, match=r"to 2 or more, or set has_auxiliary = False in the cl"):
        blueprint_of(whole, MadeUpBatches())


def test_without_exits_nothing_is_built_behind_a_cut() -> None:
    site = BlockSite(1, 4, (1, 8, 8), (4, 8, 8), 10, (4, 8, 8))
    with pytest.raises(AssertionError):
        built("backprop", context="E").build_auxiliary(site)


def test_a_local_network_with_context_is_finished_end_to_end_and_back(tmp_path: Path) -> None:
    local = ["method.name=contsup", "method.auxiliary=linear", *TINY]
    end = ["method.name=backprop", "method.context=E", *TINY]
    first = ppll.Trainer(ppll.load_recipe("digits-resnet", local), out=tmp_path / "1").fit()
    again = [f"model.weights={tmp_path / '1'}", "optimizer.lr=1e-9", "optimizer.weight_decay=0"]
    ppll.Trainer(ppll.load_recipe("digits-resnet", [*end, *again]), out=tmp_path / "2").fit()
    back = [*local, f"model.weights={tmp_path / '2'}", "train.max_steps=1", "optimizer.lr=1e-9"]
    last = ppll.Trainer(ppll.load_recipe("digits-resnet", back), out=tmp_path / "3").fit()
    assert first.weights_sha256 != last.weights_sha256
    one, two, three = (dict(ppll.load(tmp_path / run).named_parameters()) for run in "123")
    kept = [name for name in one if name.startswith("contexts.")]
    assert kept
    for name in kept:
        torch.testing.assert_close(two[name], one[name], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(three[name], two[name], atol=1e-6, rtol=1e-5)
