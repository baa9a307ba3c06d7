"""What every model of the shelf promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ppll.errors import RecipeError
from ppll.models import Network, feature_shapes, initialise, models

SMALL: dict[str, dict[str, Any]] = {
    "resnet": {"depth": 8, "width": 4},
    "resnet32": {"width": 4},
    "resnet110": {"width": 2},
    "vit": {"depth": 2, "width": 12, "heads": 3, "dropout": 0.1},
    "vit-small": {"dropout": 0.1},
    "vit-tiny": {},
}
"""Options that make each model quick to run."""


def build(name: str) -> Network:
    network = models.build(name, SMALL[name], (1, 8, 8), 10)
    for layer in network.layers:
        initialise(layer.module, layer.name, seed=0)
    return network


def test_these_are_all_models() -> None:
    assert [entry.name for entry in models] == sorted(SMALL)
    assert all(entry.summary for entry in models)


@pytest.mark.parametrize("name", SMALL)
def test_the_row_computes_what_the_whole_model_computes(name: str) -> None:
    network = build(name)
    whole = network.as_module().eval()
    images = torch.randn(3, 1, 8, 8)
    features = images
    for layer in network.layers:
        features = layer.module(features)
    assert features.shape == (3, 10)
    assert torch.equal(features, whole(images))
    names = [f"{layer.name}.{key}" for layer in network.layers for key in layer.module.state_dict()]
    assert list(whole.state_dict()) == names


@pytest.mark.parametrize("name", SMALL)
def test_shapes_are_the_same_on_the_meta_device(name: str) -> None:
    shapes = feature_shapes(build(name), (1, 8, 8))
    with torch.device("meta"):
        empty = models.build(name, SMALL[name], (1, 8, 8), 10)
    assert all(parameter.is_meta for parameter in empty.as_module().parameters())
    assert feature_shapes(empty, (1, 8, 8)) == shapes
    assert shapes[-1] == (10,)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_no_layer_changes_what_it_reads_or_what_another_layer_reads(
    name: str, training: bool
) -> None:
    features = torch.randn(4, 1, 8, 8)
    for layer in build(name).layers:
        inputs = features.detach().requires_grad_()
        kept, version = inputs.detach().clone(), inputs._version
        features = layer.module.train(training)(inputs)
        features.square().sum().backward()
        assert inputs._version == version, layer
        assert torch.equal(inputs, kept), layer
        assert features._version == 0, layer
        assert features._base is None, f"{layer} returns a view"


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns(name: str) -> None:
    whole = build(name).as_module()
    loss = whole(torch.randn(4, 1, 8, 8)).square().sum()
    loss.backward()
    silent = [key for key, p in whole.named_parameters() if p.grad is None]
    assert silent == []


@pytest.mark.parametrize("name", SMALL)
def test_samples_that_are_no_images_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=r"takes images .* \(64,\)"):
        models.build(name, {}, (64,), 10)
