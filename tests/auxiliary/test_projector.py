"""SCPL's projectors: what they read and how large they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ppll.auxiliary.projector import projector
from ppll.errors import RecipeError
from ppll.site import BlockSite


def build(feature_shape: tuple[int, ...], hidden: int) -> nn.Module:
    return projector(BlockSite(0, 2, (3, 8, 8), feature_shape, 30), hidden=hidden)


@pytest.mark.parametrize(
    ("feature_shape", "num_inputs"), [((4, 3, 5), 60), ((17, 12), 12), ((12,), 12)]
)
def test_projectors_have_the_parameters_of_the_paper(
    feature_shape: tuple[int, ...], num_inputs: int
) -> None:
    by_hand = {0: num_inputs * 30 + 30, 20: num_inputs * 20 + 20 + 20 * 30 + 30}
    for hidden, num_parameters in by_hand.items():
        built = build(feature_shape, hidden)
        assert built(torch.randn(2, *feature_shape)).shape == (2, 30)
        assert sum(p.numel() for p in built.parameters()) == num_parameters


def test_maps_are_flattened_and_tokens_averaged() -> None:
    maps, tokens = torch.randn(2, 4, 3, 5), torch.randn(2, 7, 12)
    for shape, features, rows in [
        ((4, 3, 5), maps, maps.flatten(1)),
        ((7, 12), tokens, tokens.mean(1)),
    ]:
        built = build(shape, 0)
        assert torch.equal(built(features), built.get_submodule("1")(rows))


def test_a_negative_number_of_hidden_units_is_refused() -> None:
    with pytest.raises(RecipeError, match="projector: hidden must be at least 0, found -1"):
        build((12,), -1)
