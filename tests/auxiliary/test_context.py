"""Context for a block's input: its encoders' size, their place, and where they cannot be."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppll.auxiliary.context import (
    Context,
    build_context,
    check_context,
    image_encoder,
    previous_encoder,
)
from ppll.errors import ModelError
from ppll.site import BlockSite

IMAGE = (3, 8, 8)


def site_of(
    block_input_shape: tuple[int, ...],
    input_shape: tuple[int, ...] = IMAGE,
    previous: tuple[int, ...] = (),
) -> BlockSite:
    return BlockSite(1, 4, input_shape, (4,), 10, block_input_shape, previous_input_shape=previous)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("shape", [(6, 8, 8), (6, 4, 4), (17, 6), (16, 6), (6,)])
def test_images_become_the_input_s_shape_with_the_parameters_of_the_paper(
    shape: tuple[int, ...],
) -> None:
    encoder = image_encoder(site_of(shape))
    image = torch.randint(256, (4, *IMAGE), dtype=torch.uint8)
    assert encoder(image).shape == (4, *shape)
    assert num_parameters(encoder) == (9 * 3 * 12 + 12) + 24 + (9 * 12 * 6 + 6) + 12


def test_bytes_are_scaled_and_floating_point_is_not() -> None:
    encoder = image_encoder(site_of((6, 4, 4))).eval()
    image = torch.randint(256, (2, *IMAGE), dtype=torch.uint8)
    torch.testing.assert_close(encoder(image), encoder(image.float() / 255))
    layers = nn.Sequential(*list(encoder.children())[1:7])
    expected = F.adaptive_avg_pool2d(layers(image / 255), (4, 4))
    torch.testing.assert_close(encoder(image), expected)


@pytest.mark.parametrize(
    ("previous", "here", "in_channels", "channels"),
    [
        ((3, 8, 8), (6, 4, 4), 3, 6),
        ((5, 4, 4), (5, 4, 4), 5, 5),
        ((17, 6), (17, 8), 6, 8),
        ((7, 6), (7, 6), 6, 6),
        ((3, 8, 8), (17, 8), 3, 8),
        ((17, 6), (12,), 6, 12),
        ((20,), (12,), 20, 12),
        ((4, 2, 2), (12,), 4, 12),
    ],
)
def test_previous_inputs_become_the_input_s_shape_with_the_parameters_of_the_paper(
    previous: tuple[int, ...], here: tuple[int, ...], in_channels: int, channels: int
) -> None:
    encoder = previous_encoder(site_of(here, previous=previous))
    features = torch.randn(4, *previous)
    assert encoder(features).shape == (4, *here)
    assert features._version == 0
    assert num_parameters(encoder) == in_channels * channels + channels + 2 * channels


def test_a_map_s_class_token_gets_nothing_but_another_row_s_does() -> None:
    from_map = previous_encoder(site_of((17, 8), previous=(3, 8, 8)))(torch.randn(4, 3, 8, 8))
    assert not from_map[:, 0].any()
    from_tokens = previous_encoder(site_of((17, 8), previous=(17, 6)))(torch.randn(4, 17, 6))
    assert from_tokens[:, 0].any()


def test_contexts_are_added() -> None:
    site = site_of((6, 4, 4), previous=(5, 8, 8))
    encoders = {"image": image_encoder(site), "previous": previous_encoder(site)}
    context = Context(encoders).eval()
    fields = {"image": torch.randn(2, *IMAGE), "previous": torch.randn(2, 5, 8, 8)}
    expected = sum(encoders[name](fields[name]) for name in fields)
    torch.testing.assert_close(context({**fields, "other": torch.zeros(1)}), expected)


def test_data_that_are_no_images_are_refused() -> None:
    with pytest.raises(
        ModelError, match=r"context 'E' encodes .* set method.context = 'R1', or do without\.$"
    ):
        check_context("E", site_of((6,), (20,)), "do without")


@pytest.mark.parametrize("shape", [(7, 6), (4, 4, 6), (1, 2, 3, 4)])
def test_inputs_without_a_place_on_the_image_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"context is added to .* \(split.cuts\) or do without\.$"):
        build_context("E", site_of(shape), "do without")


def test_a_previous_input_that_is_no_map_is_refused() -> None:
    site = site_of((6, 4, 4), (1, 2, 3, 4), previous=(1, 2, 3, 4))
    with pytest.raises(ModelError, match=r"^'context' reads maps .* \(split.cuts\) or do without"):
        build_context("R1", site, "do without")
