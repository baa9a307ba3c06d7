"""SEDONA: heads of a depth that the recipe names."""

from __future__ import annotations

import pytest

from ppll.auxiliary.sedona import InvertedResidual
from ppll.errors import RecipeError
from ppll.site import BlockSite
from tests.interleaving import NETWORKS
from tests.methods.trials import blocks_after_a_step, built, recipe_with, same_bits_everywhere


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("depth", [1, 4])
def test_every_block_learns_from_a_batch_with_heads_of_the_depth(depth: int, network: str) -> None:
    recipe = recipe_with("sedona", network, f"auxiliary_options={{depth = {depth}}}")
    for block in blocks_after_a_step(recipe)[:-1]:
        auxiliary = block.modules.auxiliary
        assert auxiliary is not None
        inverted = [m for m in auxiliary.modules() if isinstance(m, InvertedResidual)]
        assert len(inverted) == depth - 1


@pytest.mark.parametrize("network", NETWORKS)
def test_the_same_bits_on_every_placement(network: str) -> None:
    assert same_bits_everywhere(recipe_with("sedona", network, "auxiliary_options={depth = 3}"))


def test_a_depth_out_of_range_is_refused() -> None:
    method = built("sedona", auxiliary_options={"depth": 5})
    with pytest.raises(RecipeError, match="sedona: depth must be 1 to 4, found 5"):
        method.build_auxiliary(BlockSite(0, 2, (3, 8, 8), (16, 8, 8), 10))


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"unknown option .*method.auxiliary_options.width"):
        built("sedona", auxiliary_options={"width": 5})
