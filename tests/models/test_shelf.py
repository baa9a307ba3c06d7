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
    "gpt": {"depth": 2, "width": 12, "heads": 3, "dropout": 0.1},
}
"""Options that make each model quick to run."""
IMAGE, TEXT = (1, 8, 8), (8,)
IMAGE_MODELS = sorted({*SMALL} - {"gpt"})


def shape_of(name: str) -> tuple[int, ...]:
    """One sample of what a model reads."""
    return IMAGE if name in IMAGE_MODELS else TEXT


def output_shape(name: str) -> tuple[int, ...]:
    """One sample of what it makes."""
    return (10,) if name in IMAGE_MODELS else (*TEXT, 10)


def dtype_of(name: str) -> torch.dtype:
    return torch.float32 if name in IMAGE_MODELS else torch.int64


def samples(name: str, number: int) -> torch.Tensor:
    if name in IMAGE_MODELS:
        return torch.randn(number, *IMAGE)
    return torch.randint(10, (number, *TEXT))


def build(name: str) -> Network:
    network = models.build(name, SMALL[name], shape_of(name), 10)
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
    inputs = samples(name, 3)
    features = inputs
    for layer in network.layers:
        features = layer.module(features)
    assert features.shape == (3, *output_shape(name))
    assert torch.equal(features, whole(inputs))
    names = [f"{layer.name}.{key}" for layer in network.layers for key in layer.module.state_dict()]
    assert list(whole.state_dict()) == names


@pytest.mark.parametrize("name", SMALL)
def test_shapes_are_the_same_on_the_meta_device(name: str) -> None:
    shapes = feature_shapes(build(name), shape_of(name), dtype_of(name))
    with torch.device("meta"):
        empty = models.build(name, SMALL[name], shape_of(name), 10)
    assert all(parameter.is_meta for parameter in empty.as_module().parameters())
    assert feature_shapes(empty, shape_of(name), dtype_of(name)) == shapes
    assert shapes[-1] == output_shape(name)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_no_layer_changes_what_it_reads_or_what_another_layer_reads(
    name: str, training: bool
) -> None:
    features = samples(name, 4)
    layers = build(name).layers
    for layer in layers:
        inputs = features.detach()
        inputs.requires_grad_(inputs.is_floating_point())
        kept, version = inputs.detach().clone(), inputs._version
        features = layer.module.train(training)(inputs)
        features.square().sum().backward()
        assert inputs._version == version, layer
        assert torch.equal(inputs, kept), layer
        assert features._version == 0, layer
        assert features._base is None or layer is layers[-1], f"{layer} returns a view"


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns(name: str) -> None:
    whole = build(name).as_module()
    loss = whole(samples(name, 4)).square().sum()
    loss.backward()
    silent = [key for key, p in whole.named_parameters() if p.grad is None]
    assert silent == []


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_samples_that_are_no_images_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=r"takes images .* \(64,\)"):
        models.build(name, {}, (64,), 10)


def test_samples_that_are_no_text_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"takes rows of tokens .* \(1, 8, 8\)"):
        models.build("gpt", {}, IMAGE, 10)
