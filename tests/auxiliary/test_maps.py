"""Features as maps, and maps of another size."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppll.auxiliary.maps import (
    MapTokens,
    Resize,
    TokenMap,
    as_map,
    average_weights,
    bilinear_weights,
    convolution,
    token_grid,
)
from ppll.errors import ModelError
from ppll.models import initialise
from ppll.site import BlockSite

SIZES = [
    ((8, 8), (16, 16)),
    ((3, 5), (7, 11)),
    ((4, 4), (4, 8)),
    ((1, 1), (5, 3)),
    ((6, 4), (1, 1)),
]


@pytest.mark.parametrize(("size", "target"), SIZES)
def test_bilinear_weights_interpolate_as_torch_does(
    size: tuple[int, int], target: tuple[int, int]
) -> None:
    maps = torch.randn(2, 3, *size)
    expected = F.interpolate(maps, target, mode="bilinear", align_corners=True)
    found = Resize(size, target, bilinear_weights)(maps)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "target"), [*SIZES, ((8, 8), (3, 5)), ((7, 9), (4, 2))])
def test_average_weights_are_the_windows_of_adaptive_pooling(
    size: tuple[int, int], target: tuple[int, int]
) -> None:
    maps = torch.randn(2, 3, *size)
    found = Resize(size, target, average_weights)(maps)
    torch.testing.assert_close(found, F.adaptive_avg_pool2d(maps, target))


def test_resizing_survives_the_meta_device_and_learns_nothing() -> None:
    usual = Resize((4, 4), (8, 8), bilinear_weights)
    with torch.device("meta"):
        empty = Resize((4, 4), (8, 8), bilinear_weights)
    empty.to_empty(device="cpu")
    initialise(empty, "auxiliary.x", seed=1)
    assert torch.equal(empty.rows, usual.rows)
    assert not list(usual.parameters())
    assert not usual.state_dict()


@pytest.mark.parametrize(
    ("num_tokens", "input_shape", "grid"),
    [
        (16, (3, 8, 8), (4, 4)),
        (17, (3, 8, 8), (4, 4)),
        (9, (3, 8, 16), (2, 4)),
        (8, (3, 16, 8), (4, 2)),
        (1, (3, 8, 8), (1, 1)),
        (17, (5,), None),
        (10, (10, 4), None),
        (7, (3, 8, 8), None),
        (16, (3, 8, 16), None),
    ],
)
def test_tokens_lie_on_the_image_like_patches(
    num_tokens: int, input_shape: tuple[int, ...], grid: tuple[int, int] | None
) -> None:
    assert token_grid(num_tokens, input_shape) == grid


def test_tokens_become_a_map_and_a_map_tokens() -> None:
    maps = torch.randn(2, 5, 3, 4)
    tokens = MapTokens(13)(maps)
    assert tokens.shape == (2, 13, 5)
    assert not tokens[:, 0].any()
    assert torch.equal(tokens[:, 1 + 1 * 4 + 2], maps[:, :, 1, 2])
    assert torch.equal(TokenMap(3, 4)(tokens), maps)


@pytest.mark.parametrize(
    ("feature_shape", "map_shape"),
    [
        ((4, 6, 5), (4, 6, 5)),
        ((17, 12), (12, 4, 4)),
        ((7, 12), (12, 7, 1)),
        ((12,), (12, 1, 1)),
    ],
)
def test_any_features_are_a_map(
    feature_shape: tuple[int, ...], map_shape: tuple[int, int, int]
) -> None:
    reading, found = as_map("reader", BlockSite(0, 2, (3, 8, 8), feature_shape, 10))
    assert found == map_shape
    assert reading(torch.randn(2, *feature_shape)).shape == (2, *map_shape)


def test_other_features_are_refused() -> None:
    with pytest.raises(ModelError, match="'reader' reads maps"):
        as_map("reader", BlockSite(0, 2, (3, 8, 8), (1, 2, 3, 4), 10))


@pytest.mark.parametrize(
    ("size", "kernel"), [((8, 8), (3, 3)), ((7, 1), (3, 1)), ((1, 1), (1, 1)), ((2, 2), (3, 3))]
)
def test_no_kernel_is_wider_than_its_side(size: tuple[int, int], kernel: tuple[int, int]) -> None:
    layer = convolution(2, 3, size)
    assert isinstance(layer, nn.Conv2d)
    assert layer.kernel_size == kernel
    assert layer(torch.randn(1, 2, *size)).shape == (1, 3, *size)
