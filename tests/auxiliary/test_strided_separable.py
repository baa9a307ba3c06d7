"""The strided separable head: its size, its width, and the map that it ends on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ppll.auxiliary.strided_separable import strided_separable
from ppll.errors import RecipeError
from ppll.site import BlockSite


def site_of(feature_shape: tuple[int, ...], *behind: tuple[int, ...]) -> BlockSite:
    return BlockSite(0, 4, (3, 32, 32), feature_shape, 10, shapes_behind=behind)


def normed(*weights: int, channels: int) -> int:
    return sum(weights) + 2 * channels * len(weights)


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def residual_by_hand(width: int) -> int:
    return normed(9 * width, width * width, width * width, channels=width)


def test_channels_double_up_to_the_last_map_s_while_the_map_is_halved() -> None:
    head = strided_separable(site_of((16, 32, 32), (32, 16, 16), (64, 8, 8), (10,)))
    reduction = (
        normed(9 * 16, channels=16) + normed(16 * 32, channels=32)
        + normed(9 * 32, channels=32) + normed(32 * 64, channels=64)
        + normed(9 * 64, channels=64) + normed(64 * 64, channels=64)
    )  # fmt: skip
    by_hand = reduction + 2 * residual_by_hand(64) + 64 * 10 + 10
    assert num_parameters(head) == by_hand
    maps = torch.randn(2, 16, 32, 32)
    assert head.get_submodule("reduction")(maps).shape == (2, 64, 4, 4)
    assert head(maps).shape == (2, 10)


def test_a_small_map_is_only_widened() -> None:
    head = strided_separable(site_of((8, 4, 4), (16, 2, 2), (10,)), depth=1)
    by_hand = normed(8 * 16, channels=16) + residual_by_hand(16) + 16 * 10 + 10
    assert num_parameters(head) == by_hand


def test_a_map_as_wide_as_the_last_stays_so() -> None:
    head = strided_separable(site_of((16, 4, 4), (10,)), depth=0)
    assert num_parameters(head) == 16 * 10 + 10


def test_a_residual_layer_adds_to_its_input() -> None:
    (layer,) = strided_separable(site_of((4, 4, 4), (10,)), depth=1).get_submodule("residual")
    nn.init.zeros_(layer.norm.weight)
    maps = torch.randn(2, 4, 4, 4)
    assert torch.equal(layer(maps), maps.relu())


@pytest.mark.parametrize("options", [{"depth": -1}, {"width": -1}])
def test_negative_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match="strided-separable: depth and width must be at least 0"):
        strided_separable(site_of((4, 4, 4)), **options)
