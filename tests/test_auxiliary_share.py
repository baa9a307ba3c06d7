"""What a method adds to a network, against what can be counted by hand."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from ppll.auxiliary_share import Share, auxiliary_share
from ppll.config import Recipe
from ppll.data_facts import DataFacts
from ppll.errors import ModelError
from ppll.job import draw_blueprint
from ppll.methods import Paper
from ppll.methods.greedy import Greedy
from ppll.models import Network
from ppll.models.vit import SelfAttention
from ppll.site import BlockSite
from tests.interleaving import MadeUpBatches, blueprint_of, small_recipe

CIFAR10 = DataFacts((3, 32, 32), 10, 1)


def share(method: str, network: str = "resnet", *settings: str) -> Share:
    base = small_recipe(network, method).with_settings([f"method.{s}" for s in settings])
    return auxiliary_share(blueprint_of(base, MadeUpBatches()))


def test_linear_heads_on_resnet_32() -> None:
    """One multiply-add a weight of the heads; 69.1 million in the network, 464,154 parameters."""
    recipe = Recipe.from_dict({"model": {"name": "resnet32"}, "method": {"name": "greedy"}})
    found = auxiliary_share(draw_blueprint(recipe, CIFAR10, None))
    weights = (16 + 32 + 64) * 10
    assert found.compute == pytest.approx(weights / 69_124_736, rel=1e-6)
    assert found.parameters == pytest.approx((weights + 30) / 466_906, rel=1e-6)


class Rest(Greedy):
    """Everything behind a block, a second time."""

    paper = Paper("none", 2026, "here")

    def build_auxiliary(self, site: BlockSite) -> nn.Module:
        return nn.Sequential(*(copy.deepcopy(layer.module) for layer in site.layers_behind))


class Attends(Rest):
    """Attention over a row of eight tokens of two numbers each, and a classifier."""

    def build_auxiliary(self, site: BlockSite) -> nn.Module:
        rows = nn.Unflatten(1, (8, 2))
        return nn.Sequential(rows, SelfAttention(2, 1), nn.Flatten(), nn.Linear(16, 3))


class Calm(Rest):
    """Asks for a gradient with respect to the block's input, through the block."""

    needs_input_gradient = True

    def local_loss(self, auxiliary, lesson, task_loss):
        loss = super().local_loss(auxiliary, lesson, task_loss)
        (gradient,) = torch.autograd.grad(loss.value, lesson.inputs, create_graph=True)
        return dataclasses.replace(loss, value=loss.value + gradient.square().sum())


def of_equal_layers(method: Greedy) -> Share:
    """Three layers of 256 multiply-adds and one of 48, in two blocks."""
    layers = [nn.Linear(16, 16, bias=False) for _ in range(3)]
    network = Network.from_modules([*layers, nn.Linear(16, 3, bias=False)])
    recipe = small_recipe(method="greedy", split_blocks=2)
    blueprint = draw_blueprint(recipe, DataFacts((16,), 3, 1), network)
    return auxiliary_share(dataclasses.replace(blueprint, method=method))


@pytest.mark.parametrize("method", [Rest(), Calm()])
def test_what_is_copied_counts_once_and_gradients_do_not(method: Greedy) -> None:
    expected = (256 + 48) / (3 * 256 + 48)
    assert of_equal_layers(method) == Share(expected, expected)


def test_attention_counts() -> None:
    """8 tokens through 2x6 and 2x2 weights, two products of 8 x 8 x 2, and 16 x 3."""
    added = 8 * (12 + 4) + 2 * (8 * 8 * 2) + 48
    assert of_equal_layers(Attends()).compute == pytest.approx(added / (3 * 256 + 48))


def test_the_network_itself_is_left_as_it_was() -> None:
    blueprint = blueprint_of(small_recipe(method="man"), MadeUpBatches())
    assert auxiliary_share(blueprint) == auxiliary_share(blueprint)
    modules = [m for layer in blueprint.network.layers for m in layer.module.modules()]
    assert all(not m._forward_hooks and m.training for m in modules)


@pytest.mark.parametrize("network", ["resnet", "vit"])
def test_backprop_adds_nothing(network: str) -> None:
    assert share("backprop", network) == Share(0.0, 0.0)


@pytest.mark.parametrize("network", ["resnet", "vit"])
def test_a_loss_adds_nothing_to_its_network(network: str) -> None:
    assert share("sgr", network) == share("zerolock", network) == share("dgl", network)


@pytest.mark.parametrize("network", ["resnet", "vit"])
def test_context_counts(network: str) -> None:
    heads = share("dgl", network, "auxiliary=conv-2fc")
    with_context = share("contsup", network)
    assert with_context.compute > heads.compute
    assert with_context.parameters > heads.parameters


def test_a_method_that_cannot_work_says_so() -> None:
    network = Network.from_modules([nn.Linear(16, 16) for _ in range(3)])
    blueprint = draw_blueprint(
        small_recipe(method="infopro", split_blocks=2), DataFacts((16,), 16, 1), network
    )
    with pytest.raises(ModelError, match="image"):
        auxiliary_share(blueprint)
