"""SEDONA's auxiliary networks: layers and parameters as in the authors' code."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from ppll.auxiliary import auxiliaries
from ppll.auxiliary.sedona import InvertedResidual
from ppll.errors import RecipeError
from ppll.site import BlockSite


def build(feature_shape: tuple[int, ...], **options: int) -> nn.Module:
    return auxiliaries.build("sedona", options, BlockSite(0, 2, (3, 8, 8), feature_shape, 10))


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def separable(channels: int, planes: int) -> int:
    return (channels * planes + 2 * planes) + (9 * planes + 2 * planes)


def inverted(planes: int, wider: int, expansion: int) -> int:
    wide = planes * expansion
    widen = planes * wide + 2 * wide if expansion > 1 else 0
    return widen + 11 * wide + wide * wider + 2 * wider


def ends(planes: int) -> int:
    return planes * 512 + 2 * 512 + 512 * 10 + 10


@pytest.mark.parametrize(("depth", "planes"), [(1, [16]), (2, [16, 16]), (3, [16, 16, 32])])
def test_basic_networks_keep_their_channels(depth: int, planes: list[int]) -> None:
    by_hand = separable(16, 16) + ends(planes[-1])
    by_hand += sum(inverted(a, b, 1) for a, b in itertools.pairwise(planes))
    assert num_parameters(build((16, 32, 32), depth=depth)) == by_hand


def test_bottleneck_networks_are_narrowed_and_expanded() -> None:
    by_hand = separable(256, 64) + inverted(64, 64, 4) + inverted(64, 96, 4) + inverted(96, 96, 4)
    assert num_parameters(build((256, 32, 32), depth=4, expansion=4)) == by_hand + ends(96)


def test_maps_are_halved_at_first_and_by_every_second_layer() -> None:
    layers = build((16, 32, 32), depth=4).get_submodule("layers")
    maps, heights = torch.randn(1, 16, 32, 32), []
    for layer in layers.children():
        maps = layer(maps)
        heights.append(maps.shape[2])
    assert heights == [32, 16, 16, 8, 8]


def test_the_input_is_added_where_the_shape_stays() -> None:
    layer = InvertedResidual(6, 6, (4, 4), 1, 4).eval()
    maps = torch.randn(2, 6, 4, 4)
    update = layer.norm(layer.narrow(layer.filter(layer.widen(maps))))
    assert torch.equal(layer(maps), maps + update)
    assert not InvertedResidual(6, 9, (4, 4), 2, 4).adds_input


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("feature_shape", [(2, 2, 2), (17, 12), (7, 12), (12,), (8, 4, 6)])
def test_it_reads_everything(feature_shape: tuple[int, ...], depth: int) -> None:
    auxiliary = build(feature_shape, depth=depth, expansion=4)
    assert auxiliary(torch.randn(4, *feature_shape)).shape == (4, 10)


@pytest.mark.parametrize(
    "options", [{"depth": 0}, {"depth": 5}, {"expansion": 0}, {"final_width": 0}]
)
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match="must be"):
        build((16, 8, 8), **options)
