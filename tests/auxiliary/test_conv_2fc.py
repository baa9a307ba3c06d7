"""InfoPro's classifier: layers and parameters as in the paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppll.auxiliary import auxiliaries
from ppll.errors import RecipeError
from ppll.site import BlockSite


def build(feature_shape: tuple[int, ...], **options: int) -> nn.Module:
    return auxiliaries.build("conv-2fc", options, BlockSite(0, 2, (3, 8, 8), feature_shape, 10))


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("channels", "wide", "stride"),
    [(16, 32, 2), (32, 64, 2), (64, 64, 1), (48, 64, 2), (96, 96, 1)],
)
def test_widths_and_strides_are_the_paper_s(channels: int, wide: int, stride: int) -> None:
    auxiliary = build((channels, 8, 8))
    by_hand = 9 * channels * wide + 2 * wide + (wide * 128 + 128) + (128 * 10 + 10)
    assert num_parameters(auxiliary) == by_hand
    assert auxiliary.get_submodule("convolution").stride == (stride, stride)


def test_it_is_the_paper_s_function() -> None:
    auxiliary = build((16, 8, 8)).eval()
    features = torch.randn(2, 16, 8, 8)
    convolution, norm, hidden, linear = (
        auxiliary.get_submodule(name) for name in ("convolution", "norm", "hidden", "linear")
    )
    maps = F.relu(norm(convolution(features)))
    assert maps.shape == (2, 32, 4, 4)
    expected = linear(F.relu(hidden(F.adaptive_avg_pool2d(maps, 1).flatten(1))))
    torch.testing.assert_close(auxiliary(features), expected)


@pytest.mark.parametrize("feature_shape", [(17, 12), (7, 12), (12,), (8, 1, 1)])
def test_it_reads_everything(feature_shape: tuple[int, ...]) -> None:
    assert build(feature_shape)(torch.randn(4, *feature_shape)).shape == (4, 10)


def test_it_needs_a_hidden_unit() -> None:
    assert num_parameters(build((16, 8, 8), hidden=1)) == 9 * 16 * 32 + 64 + 33 + 20
    with pytest.raises(RecipeError, match="hidden must be at least 1, found 0"):
        build((16, 8, 8), hidden=0)
