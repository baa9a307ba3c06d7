"""InfoPro's decoder: its layers, its size, and where there is no image to be found."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppll.auxiliary.image_decoder import image_decoder
from ppll.errors import ModelError
from ppll.site import BlockSite


def build(feature_shape: tuple[int, ...], input_shape: tuple[int, ...] = (3, 8, 8)) -> nn.Module:
    return image_decoder("infopro", BlockSite(0, 2, input_shape, feature_shape, 10))


@pytest.mark.parametrize("feature_shape", [(16, 8, 8), (16, 4, 4), (64, 2, 2), (17, 16), (16, 16)])
def test_images_come_out_with_the_parameters_of_the_paper(feature_shape: tuple[int, ...]) -> None:
    decoder = build(feature_shape)
    features = torch.randn(4, *feature_shape, requires_grad=True)
    decoded = decoder(features)
    torch.autograd.backward(decoded.square().mean())
    channels = feature_shape[0] if len(feature_shape) == 3 else feature_shape[1]
    by_hand = 9 * channels * 12 + 12 + 2 * 12 + 9 * 12 * 3 + 3
    assert decoded.shape == (4, 3, 8, 8)
    assert sum(p.numel() for p in decoder.parameters()) == by_hand
    assert features._version == 0
    assert all(p.grad is not None for p in decoder.parameters())


def test_it_is_the_paper_s_function() -> None:
    decoder = build((4, 4, 4)).eval()
    features = torch.randn(2, 4, 4, 4)
    larger = F.interpolate(features, (8, 8), mode="bilinear", align_corners=True)
    convolution, norm, image = (
        decoder.get_submodule(name) for name in ("convolution", "norm", "image")
    )
    expected = image(F.relu(norm(convolution(larger))))
    torch.testing.assert_close(decoder(features), expected, rtol=1e-4, atol=1e-5)


def test_grey_and_oblong_images_are_decoded() -> None:
    assert build((9, 6), (1, 8, 16))(torch.randn(2, 9, 6)).shape == (2, 1, 8, 16)


def test_data_that_are_no_images_are_refused() -> None:
    with pytest.raises(ModelError, match=r"'infopro' reconstructs images .* shape \(20,\)"):
        build((16, 8, 8), (20,))


@pytest.mark.parametrize("feature_shape", [(12,), (7, 12), (1, 2, 3, 4)])
def test_features_without_a_place_on_the_image_are_refused(feature_shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"reconstructs images from maps .* cut elsewhere"):
        build(feature_shape)
