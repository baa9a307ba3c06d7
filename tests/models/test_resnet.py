"""CIFAR ResNets: their rows, their sizes and their first values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ppll.errors import RecipeError
from ppll.models import Network, feature_shapes, models
from ppll.models.resnet import Convolution, resnet


def num_parameters(network: Network) -> int:
    return sum(parameter.numel() for parameter in network.as_module().parameters())


def by_hand(layers_per_stage: int) -> int:
    """Parameters of a network of width 16 for ten classes of colour images."""
    stem = 27 * 16 + 2 * 16
    stage1 = layers_per_stage * (2 * 9 * 16 * 16 + 4 * 16)
    stage2 = 9 * 16 * 32 + 9 * 32 * 32 + 4 * 32 + (16 * 32 + 2 * 32)
    stage2 += (layers_per_stage - 1) * (2 * 9 * 32 * 32 + 4 * 32)
    stage3 = 9 * 32 * 64 + 9 * 64 * 64 + 4 * 64 + (32 * 64 + 2 * 64)
    stage3 += (layers_per_stage - 1) * (2 * 9 * 64 * 64 + 4 * 64)
    head = 64 * 10 + 10
    return stem + stage1 + stage2 + stage3 + head


@pytest.mark.parametrize(
    ("name", "layers_per_stage", "option_a"),
    [("resnet32", 5, 464_154), ("resnet110", 18, 1_727_962)],
)
def test_parameters_are_those_of_the_paper_and_two_projections(
    name: str, layers_per_stage: int, option_a: int
) -> None:
    # The paper's table 6 has 0.46 M and 1.7 M, with shortcuts that have no parameters (option A).
    # Ours add two 1x1 convolutions with their norms: (512 + 64) + (2048 + 128).
    network = models.build(name, {}, (3, 32, 32), 10)
    assert num_parameters(network) == by_hand(layers_per_stage) == option_a + 576 + 2176


def test_the_row_of_resnet_20() -> None:
    network = resnet((3, 32, 32), 10)
    names = [layer.name for layer in network.layers]
    stages = [f"stage{stage}_{index}" for stage in (1, 2, 3) for index in range(3)]
    assert names == ["stem", *stages, "head"]
    assert (network.num_stem, network.num_head) == (1, 1)
    maps = [(16, 32, 32)] * 4 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3
    assert feature_shapes(network, (3, 32, 32)) == [*maps, (10,)]


def test_grey_digits_fit() -> None:
    shapes = feature_shapes(resnet((1, 8, 8), 10, depth=8, width=4), (1, 8, 8))
    assert shapes == [(4, 8, 8), (4, 8, 8), (8, 4, 4), (16, 2, 2), (10,)]


@pytest.mark.parametrize(
    ("depth", "hint"),
    [(21, "take 20 or 26"), (31, "take 26 or 32"), (2, "take 8"), (7, "take 8"), (9, "8 or 14")],
)
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth: int, hint: str) -> None:
    with pytest.raises(RecipeError, match=rf"model.depth must be 6n \+ 2 .*found {depth}.*{hint}"):
        models.build("resnet", {"depth": depth}, (3, 32, 32), 10)


def test_a_width_below_one_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"model.width must be at least 1, found 0"):
        models.build("resnet32", {"width": 0}, (3, 32, 32), 10)


def test_convolutions_start_with_the_variance_of_the_paper() -> None:
    conv = Convolution(16, 64, 3)
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.05)


def test_only_a_change_of_shape_projects_the_shortcut() -> None:
    layers = {layer.name: layer.module for layer in resnet((3, 8, 8), 10).layers}
    assert isinstance(layers["stage1_0"].shortcut, nn.Identity)
    assert isinstance(layers["stage2_0"].shortcut, nn.Sequential)
    assert isinstance(layers["stage2_1"].shortcut, nn.Identity)


def test_a_residual_layer_adds_to_its_input() -> None:
    layer = resnet((3, 8, 8), 10, depth=8, width=4).layers[1].module.eval()
    with torch.no_grad():
        for name in ("conv1", "conv2"):
            layer.get_parameter(f"{name}.weight").zero_()
    features = torch.randn(2, 4, 8, 8).relu()
    assert torch.equal(layer(features), features)
