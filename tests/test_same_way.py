"""A layer's backward pass, whatever it has computed; replicas share none of it here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ppll.replicas.same_way import SameWay


class Layer(nn.Module):
    """Passes over itself, or a half of itself, as it is told; its number is not cut."""

    def __init__(self, passes_over: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.passes_over = passes_over

    def forward(self, features: Any) -> Any:
        if self.passes_over:
            return features
        return self.first(features) * self.scale * self.frozen


def gradients(layer: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}


def is_nothing(gradient: Tensor) -> bool:
    return not gradient.any() and bool(gradient.signbit().all())


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_what_has_no_gradient_gets_one_that_adds_nothing(needs_gradient: bool) -> None:
    layer, plain = Layer(), Layer()
    plain.load_state_dict(layer.state_dict())
    way = SameWay(layer)
    inputs = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    for module in (layer, plain):
        module(inputs.clone().requires_grad_(needs_gradient)).sum().backward()
    found = gradients(layer)
    assert is_nothing(found.pop("second.weight"))
    assert is_nothing(found.pop("second.bias"))
    expected = gradients(plain)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert way.take_found() == ["first.weight", "first.bias"]


@pytest.mark.parametrize("needs_gradient", [False, True])
@pytest.mark.parametrize(
    "form", [lambda t: t, lambda t: (torch.arange(2), {"features": t})], ids=["one", "several"]
)
def test_a_layer_that_is_passed_over_is_in_the_graph(
    needs_gradient: bool, form: Callable[[Tensor], Any]
) -> None:
    layer, values = Layer(passes_over=True), torch.ones(2, 3, requires_grad=needs_gradient)
    way = SameWay(layer)
    output = layer(form(values))
    found = output if isinstance(output, Tensor) else output[1]["features"]
    assert found.requires_grad
    assert torch.equal(found, values)
    found.sum().backward()
    assert [n for n, g in gradients(layer).items() if is_nothing(g)] == [
        *("first.weight", "first.bias", "second.weight", "second.bias")
    ]
    assert way.take_found() == []
    assert (values.grad is not None) == needs_gradient


@pytest.mark.parametrize("passed_over", [[True, False], [False, True]])
def test_a_parameter_is_found_if_any_part_of_a_batch_comes_to_it(passed_over: list[bool]) -> None:
    layer = Layer()
    way = SameWay(layer)
    for layer.passes_over in passed_over:
        layer(torch.ones(2, 3)).sum().backward()
    assert way.take_found() == ["first.weight", "first.bias"]
    assert torch.equal(layer.first.bias.grad, torch.full((3,), 4.0))


def test_a_layer_that_is_computed_again_is_filled_once() -> None:
    """Gradients are taken as soon as the layer's input has its own; nothing is filled after."""
    layer, before = Layer(), nn.Linear(3, 3)
    way = SameWay(layer)
    features = before(torch.ones(2, 3))
    output = checkpoint(layer, features, use_reentrant=False)
    found: list[str] = []

    def take(_: Tensor) -> None:
        found.extend(way.take_found())
        layer.zero_grad()

    features.register_hook(take)
    output.sum().backward()
    assert found == ["first.weight", "first.bias"]
    assert gradients(layer) == {}


def test_an_evaluation_is_left_alone() -> None:
    layer = Layer(passes_over=True)
    SameWay(layer)
    inputs = torch.ones(2, 3)
    with torch.no_grad():
        assert layer(inputs) is inputs
