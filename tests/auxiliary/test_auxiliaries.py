"""What every auxiliary network promises, and what each of them computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppll.auxiliary import auxiliaries
from ppll.auxiliary.maps import TokenMap
from ppll.auxiliary.mlp_sr import _average_pool, _reduced
from ppll.errors import ModelError
from ppll.models import initialise
from ppll.site import BlockSite

NAMES = [
    "auglocal",
    "conv-2fc",
    "linear",
    "mlp-sr",
    "pooled-linear",
    "projector",
    "sedona",
    "strided-separable",
]
SHAPES = [(16, 8, 8), (8, 4, 6), (8, 1, 1), (65, 12), (64, 12), (7, 12), (12,)]


def build(name: str, feature_shape: tuple[int, ...]) -> nn.Module:
    return auxiliaries.build(name, {}, site_of(feature_shape))


def site_of(feature_shape: tuple[int, ...]) -> BlockSite:
    return BlockSite(0, 2, (3, 8, 8), feature_shape, 10)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_these_are_all_auxiliary_networks() -> None:
    """The frozen readout stands for a network's own last layer: see test_readout.py."""
    assert [entry.name for entry in auxiliaries] == sorted([*NAMES, "frozen-readout"])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("feature_shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_logits_come_out_and_the_features_stay_as_they_are(
    name: str, feature_shape: tuple[int, ...], training: bool
) -> None:
    auxiliary = build(name, feature_shape).train(training)
    features = torch.randn(4, *feature_shape, requires_grad=True)
    kept, version = features.detach().clone(), features._version
    logits = auxiliary(features)
    torch.autograd.backward(F.cross_entropy(logits, torch.arange(4)))
    assert logits.shape == (4, 10)
    assert features._version == version
    assert torch.equal(features, kept)
    assert features.grad is not None
    assert all(parameter.grad is not None for parameter in auxiliary.parameters())


@pytest.mark.parametrize("feature_shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_first_values_survive_the_meta_device(name: str, feature_shape: tuple[int, ...]) -> None:
    usual = build(name, feature_shape)
    with torch.device("meta"):
        empty = build(name, feature_shape)
    empty.to_empty(device="cpu")
    for module in (usual, empty):
        initialise(module, "auxiliary.layer3", seed=4)
    expected = usual.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in empty.state_dict().items())


@pytest.mark.parametrize("feature_shape", [(), (1, 2, 3, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_features_of_another_kind_are_refused(name: str, feature_shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"reads maps .* found features of shape"):
        build(name, feature_shape)


# What is read of token rows


@pytest.mark.parametrize("num_tokens", [9, 10])
@pytest.mark.parametrize("name", NAMES)
def test_every_row_counts_where_samples_are_no_images(name: str, num_tokens: int) -> None:
    """Ten rows of a sequence are no nine patches behind a class token."""
    site = BlockSite(0, 2, (num_tokens, 4), (num_tokens, 12), 10)
    assert rows_that_count(auxiliaries.build(name, {}, site), num_tokens) == {*range(num_tokens)}


def test_the_linear_head_reads_the_class_token_where_there_is_one() -> None:
    assert rows_that_count(build("linear", (65, 12)), 65) == {0}
    assert rows_that_count(build("linear", (64, 12)), 64) == {*range(64)}
    assert rows_that_count(build("linear", (66, 12)), 66) == {0}, "beside a token of another kind"


def rows_that_count(auxiliary: nn.Module, num_tokens: int) -> set[int]:
    """Tokens that the logits depend on."""
    for parameter in auxiliary.parameters():
        nn.init.normal_(parameter)
    tokens = torch.randn(4, num_tokens, 12, requires_grad=True)
    torch.autograd.backward(auxiliary.eval()(tokens).square().sum())
    assert tokens.grad is not None
    return {*tokens.grad.abs().sum((0, 2)).nonzero().flatten().tolist()}


# Maps with their channels last


@pytest.mark.parametrize("name", sorted({*NAMES} - {"projector"}))
def test_maps_with_their_channels_last_are_refused(name: str) -> None:
    """Read as (C, H, W) they would be averaged over a side and the channels."""
    with pytest.raises(ModelError, match=r"look like maps \(H, W, C\)"):
        build(name, (4, 4, 16))


@pytest.mark.parametrize("features", [(4, 4, 4), (4, 3, 5), (4, 4, 8), (1, 1, 1)])
def test_maps_of_other_proportions_are_read_as_they_are(features: tuple[int, ...]) -> None:
    image = (3, features[1] * 2, features[2] * 2)
    auxiliaries.build("linear", {}, BlockSite(0, 2, image, features, 10))


@pytest.mark.parametrize(
    ("image", "features"), [((1, 64, 64), (64, 64, 1)), ((3, 32, 32), (32, 32, 16))]
)
def test_maps_may_have_as_many_channels_as_rows(
    image: tuple[int, ...], features: tuple[int, ...]
) -> None:
    """A width below the height, as of spectra pooled over time, is not the number of channels."""
    auxiliaries.build("linear", {}, BlockSite(0, 2, image, features, 10))


# The pooled linear head


def test_linear_reads_the_mean_of_a_map() -> None:
    head = build("linear", (3, 4, 4))
    features = torch.randn(2, 3, 4, 4)
    expected = head.get_submodule("linear")(features.flatten(2).mean(2))
    assert torch.allclose(head(features), expected, atol=1e-6)
    assert num_parameters(head) == 3 * 10 + 10


def test_linear_reads_the_normed_class_token() -> None:
    head = build("linear", (5, 6))
    tokens = torch.randn(2, 5, 6)
    expected = head.get_submodule("linear")(F.layer_norm(tokens[:, 0], (6,)))
    assert torch.allclose(head(tokens), expected, atol=1e-6)


def test_linear_reads_a_vector_as_it_is() -> None:
    assert isinstance(build("linear", (6,)), nn.Linear)


# MLP-SR


def mlp_by_hand(width: int) -> int:
    return 3 * (width * width + 2 * width) + width * 10 + 10


@pytest.mark.parametrize("size", [32, 16, 8, 4, 2])
def test_mlp_sr_has_the_parameters_of_the_paper_on_square_maps(size: int) -> None:
    convolutions = 3 * (16 * 16 + 2 * 16)
    assert num_parameters(build("mlp-sr", (16, size, size))) == convolutions + mlp_by_hand(4 * 16)


def test_mlp_sr_on_maps_is_the_paper_s_function() -> None:
    auxiliary = build("mlp-sr", (4, 32, 32)).eval()
    features = torch.randn(2, 4, 32, 32)
    reduced = F.adaptive_avg_pool2d(features, 8)
    pooled = F.adaptive_avg_pool2d(auxiliary.get_submodule("convolutions")(reduced), 2)
    expected = auxiliary.get_submodule("mlp")(pooled.flatten(1))
    assert torch.allclose(auxiliary(features), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "reduced"), [(1, 1), (2, 2), (4, 2), (5, 2), (8, 2), (9, 3), (11, 3), (32, 8)]
)
def test_maps_are_reduced_by_four_but_not_below_what_the_mlp_reads(size: int, reduced: int) -> None:
    assert _reduced(size) == reduced


@pytest.mark.parametrize("target", range(1, 15))
@pytest.mark.parametrize("size", [1, 2, 5, 8, 11, 14, 56])
def test_windows_of_a_pool_cover_the_map_and_no_more(size: int, target: int) -> None:
    target = min(target, size)
    positions = torch.ones(1, 1, size, size, requires_grad=True)
    pooled = _average_pool((size, size), (target, target))(positions)
    (share,) = torch.autograd.grad(pooled.sum(), positions)
    assert pooled.shape == (1, 1, target, target)
    assert bool((share > 0).all())


@pytest.mark.parametrize(("size", "target"), [(32, 8), (56, 14), (7, 2), (5, 2), (3, 2), (10, 3)])
def test_windows_are_those_of_adaptive_pooling_where_those_are_equal(
    size: int, target: int
) -> None:
    features = torch.randn(2, 3, size, size)
    pooled = _average_pool((size, size), (target, target))(features)
    assert torch.allclose(pooled, F.adaptive_avg_pool2d(features, target), atol=1e-6)


@pytest.mark.parametrize("num_tokens", [16, 17])
def test_tokens_are_laid_back_on_their_square(num_tokens: int) -> None:
    maps: Tensor = torch.arange(2 * 3 * 16.0).reshape(2, 3, 4, 4)
    patches = maps.flatten(2).transpose(1, 2)
    class_tokens = torch.full((2, num_tokens - 16, 3), -1.0)
    tokens = torch.cat((class_tokens, patches), dim=1)
    assert torch.equal(TokenMap(4, 4)(tokens), maps)
    on_maps, on_tokens = build("mlp-sr", (3, 4, 4)), build("mlp-sr", (num_tokens, 3))
    on_maps.load_state_dict(on_tokens.get_submodule("maps").state_dict())
    assert torch.allclose(on_tokens.eval()(tokens), on_maps.eval()(maps), atol=1e-5)


def test_tokens_of_no_square_are_read_by_their_mean() -> None:
    auxiliary = build("mlp-sr", (7, 12))
    tokens = torch.randn(2, 7, 12)
    expected = auxiliary.get_submodule("mlp")(tokens.mean(1))
    assert torch.equal(auxiliary(tokens), expected)
    assert num_parameters(auxiliary) == mlp_by_hand(12)
    assert not any(isinstance(module, nn.BatchNorm1d) for module in auxiliary.modules())


def test_vectors_are_read_by_the_mlp_alone() -> None:
    assert num_parameters(build("mlp-sr", (12,))) == mlp_by_hand(12)
