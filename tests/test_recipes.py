"""Every shipped recipe makes a network of the right size, cut into its blocks."""

from __future__ import annotations

import pytest
import torch

from ppll.blocks.blueprint import Blueprint
from ppll.job import DataFacts
from ppll.recipe_files import load_recipe, shipped_recipes
from tests.interleaving import drawn

FACTS = {
    "digits": DataFacts((1, 8, 8), 10, 23),
    "cifar10": DataFacts((3, 32, 32), 10, 49),
    "svhn": DataFacts((3, 32, 32), 10, 72),
    "stl10": DataFacts((3, 96, 96), 10, 40),
    "stdlib-text": DataFacts((128,), 256, 5000, num_tokens=256, predicts_tokens=True),
}


@pytest.fixture(scope="module", params=sorted(shipped_recipes()))
def blueprint(request: pytest.FixtureRequest) -> Blueprint:
    recipe = load_recipe(request.param)
    return drawn(recipe, FACTS[recipe.data.name])


def test_every_layer_is_in_exactly_one_block(blueprint: Blueprint) -> None:
    asked_for = blueprint.recipe.split.blocks
    assert asked_for in (2, 4)
    assert blueprint.num_blocks == (1 if blueprint.method.end_to_end else asked_for)
    dealt = [index for layers in blueprint.ranges for index in layers]
    assert dealt == list(range(len(blueprint.network.layers)))
    train = blueprint.recipe.train
    num_steps = blueprint.steps_per_epoch * train.epochs
    assert blueprint.num_steps == min(num_steps, train.max_steps or num_steps)


def test_blocks_hold_the_parameters_of_the_network(blueprint: Blueprint) -> None:
    """Built on meta, so nothing is as large as the network."""
    blocks = range(blueprint.num_blocks)
    modules = [blueprint.build_modules(i, torch.device("meta")) for i in blocks]
    names = [n for m in modules for n, _ in m.named_parameters()]
    own = [n for n in names if not n.startswith(("auxiliary.", "context."))]
    assert own == [name for name, _ in blueprint.network.as_module().named_parameters()]
    assert [m.auxiliary is None for m in modules] == [i == blocks[-1] for i in blocks]
