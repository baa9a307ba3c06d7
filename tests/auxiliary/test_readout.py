"""Heads that read through the network's own last layer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from ppll.auxiliary import auxiliaries
from ppll.auxiliary.readout import SharedReadout, shared_readout
from ppll.errors import ModelError, PpllError, RecipeError
from ppll.models import initialise
from ppll.models.copies import source_names
from ppll.models.network import Layer
from ppll.site import BlockSite

WIDTH, NUM_CLASSES = 6, 5
LAYERS = (Layer("middle", nn.Linear(WIDTH, WIDTH)), Layer("head", nn.Linear(WIDTH, NUM_CLASSES)))
SITE = BlockSite(
    0,
    2,
    (WIDTH,),
    (WIDTH,),
    NUM_CLASSES,
    (WIDTH,),
    LAYERS,
    ((WIDTH,), (NUM_CLASSES,)),
)


def with_values(module: nn.Module) -> nn.Module:
    initialise(module.to_empty(device="cpu"), "auxiliary.first", seed=3)
    return module


@pytest.mark.parametrize("adapter", [0, 4])
def test_a_readout_starts_as_the_head_that_it_is_of(adapter: int) -> None:
    module = with_values(auxiliaries.build("frozen-readout", {"adapter": adapter}, SITE))
    head = nn.Linear(WIDTH, NUM_CLASSES)
    initialise(head, "head", seed=3)
    features = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(features), head(features))  # an adapter adds nothing at first
    learned = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert learned == (2 * WIDTH * adapter + adapter)
    names = source_names("auxiliary.first", module)
    assert set(names.values()) == {"head.weight", "head.bias"}
    assert names.keys() <= {f"auxiliary.first.{name}" for name in module.state_dict()}


def adapted(*shape: int) -> nn.Module:
    """A readout behind an adapter, of maps of such a shape."""
    head = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), NUM_CLASSES))
    site = replace(
        SITE,
        input_shape=(1, 4, 6),
        feature_shape=shape,
        layers_behind=(Layer("head", head),),
        shapes_behind=((NUM_CLASSES,),),
    )
    return with_values(auxiliaries.build("frozen-readout", {"adapter": 5}, site))


def test_an_adapter_of_columns_is_not_taken_for_one_of_channels() -> None:
    """It was one before; of maps as wide as they have channels, its values have the same shapes."""
    names = [n for n, p in adapted(3, 2, 3).named_parameters() if p.requires_grad]
    assert names == [f"channel_adapter.{name}" for name in ("up", "down.weight", "down.bias")]
    rows = auxiliaries.build("frozen-readout", {"adapter": 5}, SITE)
    assert "adapter.up" in rows.state_dict()


def test_an_adapter_mixes_the_channels_of_each_pixel() -> None:
    """Maps of two rows and three columns: what is added at a pixel is of that pixel alone."""
    shape = (4, 2, 3)
    adapter = adapted(*shape).get_submodule("channel_adapter")
    nn.init.normal_(adapter.get_parameter("up"))
    maps = torch.randn(2, *shape)
    added = adapter(maps) - maps
    changed = maps.clone()
    changed[:, 1, 0, 2] += 1
    differs = (adapter(changed) - changed - added).abs().amax((0, 1)) > 1e-4
    assert differs.nonzero().tolist() == [[0, 2]]


@pytest.mark.parametrize("names", [["weight", "bias"], ["weight"], []])
def test_a_copy_starts_as_the_layer_where_only_some_values_are_given(names: list[str]) -> None:
    """As the layer itself: the others are first values of the seed."""
    head, other = nn.Linear(WIDTH, NUM_CLASSES), nn.Linear(WIDTH, NUM_CLASSES)
    initialise(head, "head", seed=3)
    given = {f"head.{name}": other.get_parameter(name) for name in names}
    module = auxiliaries.build("frozen-readout", {}, SITE)
    initialise(module.to_empty(device="cpu"), "auxiliary.first", 3, given)
    for name in ("weight", "bias"):
        expected = (other if name in names else head).get_parameter(name)
        assert torch.equal(module.get_parameter(f"layer.{name}"), expected)


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_a_shared_readout_takes_over_what_comes(depth: int) -> None:
    module = with_values(shared_readout(SITE, depth=depth))
    assert isinstance(module, SharedReadout)
    parameters = torch.arange(WIDTH * NUM_CLASSES + NUM_CLASSES, dtype=torch.float32)
    module.follow(parameters)
    found = [p.flatten() for p in module.readout.parameters()]
    assert torch.equal(torch.cat(found), parameters)
    features = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
    module(features).sum().backward()
    assert module.temperature.grad is not None
    assert all(p.grad is None for p in module.readout.parameters())


def test_a_shared_readout_of_features_that_the_last_layer_cannot_read_is_refused() -> None:
    """Where the width changes across the cut, an adapter without layers leaves it as it is."""
    layers = (Layer("wider", nn.Linear(4, WIDTH)), LAYERS[1])
    site = replace(SITE, feature_shape=(4,), layers_behind=layers)
    with pytest.raises(ModelError, match=r"0 layer\(s\).*'head'.*\(4,\).*Raise method\.depth"):
        shared_readout(site, depth=0)
    shared_readout(site, depth=1)


def test_an_adapter_whose_layers_do_not_fit_is_refused_as_solo_s() -> None:
    site = replace(SITE, feature_shape=(4,))
    with pytest.raises(ModelError, match=r"^method 'solo' .*another depth or method\.name\.$"):
        shared_readout(site, depth=1)


def test_a_last_layer_without_parameters_is_refused_by_the_key_that_chose_it() -> None:
    site = replace(SITE, layers_behind=(LAYERS[0], Layer("relu", nn.ReLU())))
    with pytest.raises(ModelError, match=r"^method 'solo' .*: choose another method\.name\.$"):
        shared_readout(site)
    with pytest.raises(ModelError, match=r"'frozen-readout' .* another method\.auxiliary\.$"):
        auxiliaries.build("frozen-readout", {}, site)


class Untried(nn.Linear):
    """What would take long to run, such as the logits of a large vocabulary."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        raise AssertionError("it was run")


@pytest.mark.parametrize("depth", [0, 1])
def test_the_last_layer_is_not_run_on_what_it_reads_in_the_network(depth: int) -> None:
    layers = (LAYERS[0], Layer("head", Untried(WIDTH, NUM_CLASSES)))
    shared_readout(replace(SITE, layers_behind=layers), depth=depth)


@pytest.mark.parametrize(
    ("options", "site", "words"),
    [
        ({"adapter": -1}, SITE, "adapter must be at least 0, found -1"),
        ({}, replace(SITE, feature_shape=(9,)), r"reads \(6,\) a sample, found \(9,\)"),
        ({}, replace(SITE, layers_behind=(Layer("relu", nn.ReLU()),)), "has no parameters"),
        ({}, replace(SITE, layers_behind=(), shapes_behind=()), "no layer follows what it reads"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], site: BlockSite, words: str) -> None:
    with pytest.raises(PpllError, match=words) as caught:
        auxiliaries.build("frozen-readout", options, site)
    assert isinstance(caught.value, RecipeError if options else ModelError)
