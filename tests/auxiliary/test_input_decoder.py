"""LoPT's decoder: what it turns into what, how large it is, and where it cannot be."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppll.auxiliary.input_decoder import Linear, Pointwise, Windows, input_decoder
from ppll.errors import ModelError
from ppll.models import initialise
from ppll.site import BlockSite

SHAPES = [
    ((17, 12), (17, 12)),
    ((17, 12), (17, 8)),
    ((17, 12), (3, 8, 8)),
    ((24, 12), (3, 8, 12)),
    ((8, 4, 6), (8, 4, 6)),
    ((8, 4, 6), (4, 8, 12)),
    ((8, 4, 4), (4, 7, 8)),
    ((12,), (12,)),
    ((12,), (3, 8, 8)),
    ((12,), (5, 6)),
    ((2,), (2,)),
    ((2, 1, 1), (2, 1, 1)),
]


def site_of(feature_shape: tuple[int, ...], input_shape: tuple[int, ...]) -> BlockSite:
    return BlockSite(1, 4, (3, 8, 8), feature_shape, 10, input_shape)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("feature_shape", "input_shape"), SHAPES)
def test_features_become_the_input_s_shape_and_stay_as_they_are(
    feature_shape: tuple[int, ...], input_shape: tuple[int, ...]
) -> None:
    module = input_decoder(site_of(feature_shape, input_shape))
    features = torch.randn(4, *feature_shape, requires_grad=True)
    decoded = module(features)
    torch.autograd.backward(decoded.square().mean())
    assert decoded.shape == (4, *input_shape)
    assert features._version == 0
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize(("feature_shape", "input_shape"), SHAPES)
def test_first_values_survive_the_meta_device(
    feature_shape: tuple[int, ...], input_shape: tuple[int, ...]
) -> None:
    usual = input_decoder(site_of(feature_shape, input_shape))
    with torch.device("meta"):
        empty = input_decoder(site_of(feature_shape, input_shape))
    empty.to_empty(device="cpu")
    for module in (usual, empty):
        initialise(module, "auxiliary.layer3", seed=4)
    expected = usual.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in empty.state_dict().items())


def test_token_rows_are_decoded_as_in_the_paper() -> None:
    module = input_decoder(site_of((17, 12), (17, 8)))
    tokens = torch.randn(2, 17, 12)
    _, narrow, _, wide = module
    expected = wide(F.gelu(narrow(F.layer_norm(tokens, (12,)))))
    assert torch.allclose(module(tokens), expected, atol=1e-6)
    assert num_parameters(module) == 2 * 12 + (12 * 3 + 3) + (3 * 8 + 8)


def test_linear_layers_start_quietly() -> None:
    for layer in (Linear(64, 16), Pointwise(64, 16)):
        initialise(layer, "auxiliary.x", seed=1)
        bound = 0.1 * (6 / (64 + 16)) ** 0.5
        assert 0.9 * bound < layer.weight.abs().max().item() <= bound
        assert not layer.bias.any()


def test_maps_have_a_channel_for_each_pixel_of_a_window() -> None:
    module = input_decoder(site_of((8, 4, 4), (4, 8, 8)))
    assert num_parameters(module) == 2 * 8 + (8 * 2 + 2) + (2 * 16 + 16)


def test_a_pixel_decodes_its_window() -> None:
    maps = torch.randn(2, 3 * 2 * 3, 4, 5)
    larger = Windows((2, 3), (7, 15))(maps)
    assert larger.shape == (2, 3, 7, 15)
    for channel, row, column in [(0, 0, 0), (2, 5, 7), (1, 6, 14)]:
        index = channel * 6 + (row % 2) * 3 + column % 3
        expected = maps[:, index, row // 2, column // 3]
        assert torch.equal(larger[:, channel, row, column], expected)
    assert torch.equal(
        Windows((2, 2), (8, 8))(maps[:, :8, :, :4]), F.pixel_shuffle(maps[:, :8, :, :4], 2)
    )


def test_a_token_decodes_its_patch() -> None:
    """Patches are as the embedding's convolution has them; the class token decodes nothing."""
    module = input_decoder(site_of((5, 8), (3, 8, 8)))
    tokens = torch.randn(1, 5, 8)
    changed = tokens.clone()
    changed[:, 2] += torch.randn(8)
    changed[:, 0] = 7.0
    differs = (module(tokens) != module(changed)).any(1)[0]
    assert differs[:4, 4:].any()
    differs[:4, 4:] = False
    assert not differs.any()


@pytest.mark.parametrize(
    ("feature_shape", "input_shape"),
    [
        ((7, 12), (3, 8, 8)),
        ((10, 12), (3, 8, 8)),
        ((17, 12), (16, 12)),
        ((8, 9, 9), (8, 8, 8)),
        ((4, 4, 8), (3, 8, 8)),
        ((8, 4, 4), (16, 8)),
        ((17, 12), (12,)),
        ((2, 3, 4, 5), (3, 8, 8)),
    ],
)
def test_where_there_is_no_way_back_it_says_so(
    feature_shape: tuple[int, ...], input_shape: tuple[int, ...]
) -> None:
    with pytest.raises(ModelError, match=r"'lopt' .* no way from \(.* in block 1: .*Cut elsewhere"):
        input_decoder(site_of(feature_shape, input_shape))


def test_rows_of_a_block_that_reads_tokens_say_which_each_was() -> None:
    """Of the vocabulary, whatever classes there are."""
    site = BlockSite(0, 4, (7,), (7, 12), 3, (7,), num_tokens=20)
    assert input_decoder(site)(torch.randn(2, 7, 12)).shape == (2, 7, 20)
    later = BlockSite(1, 4, (7,), (7, 12), 3, (7, 8), num_tokens=20)
    assert input_decoder(later)(torch.randn(2, 7, 12)).shape == (2, 7, 8)


@pytest.mark.parametrize("feature_shape", [(12,), (4, 12)])
def test_tokens_are_not_found_again_in_fewer_rows(feature_shape: tuple[int, ...]) -> None:
    site = BlockSite(0, 4, (7,), feature_shape, 3, (7,), num_tokens=20)
    with pytest.raises(ModelError, match=r"back to \(7,\) in block 0.*vectors into all but tokens"):
        input_decoder(site)
