"""The causal transformer: what it sees, where it is, and what low-rank additions learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppll.errors import RecipeError
from ppll.models import models
from ppll.models.gpt import Rotation
from ppll.models.initialising import initialise
from ppll.models.lora import ADDED, LoRALinear

LENGTH, NUM_TOKENS = 12, 10
SMALL: dict[str, Any] = {"width": 12, "depth": 2, "heads": 3}


def build(**options: Any) -> nn.Module:
    network = models.build("gpt", {**SMALL, **options}, (LENGTH,), NUM_TOKENS)
    for layer in network.layers:
        initialise(layer.module, layer.name, seed=0)
    return network.as_module().eval()


def rows(number: int = 3) -> torch.Tensor:
    return torch.randint(NUM_TOKENS, (number, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_token_sees_those_before_it_alone(positions: str) -> None:
    whole = build(positions=positions)
    before, after = rows(), rows()
    after[:, 7] = (after[:, 7] + 1) % NUM_TOKENS
    with torch.no_grad():
        first, second = whole(before), whole(after)
    assert torch.equal(first[:, :7], second[:, :7])
    assert all(not torch.equal(first[:, t], second[:, t]) for t in range(7, LENGTH))


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_shorter_row_is_read_like_the_beginning_of_a_longer_one(positions: str) -> None:
    whole = build(positions=positions)
    with torch.no_grad():
        torch.testing.assert_close(whole(rows()[:, :5]), whole(rows())[:, :5])


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_the_order_of_tokens_counts(positions: str) -> None:
    whole, tokens = build(positions=positions), rows(1)
    swapped = tokens.clone()
    swapped[:, [0, 1]] = tokens[:, [1, 0]]
    assert tokens[0, 0] != tokens[0, 1]
    with torch.no_grad():
        assert not torch.allclose(whole(tokens)[:, 5:], whole(swapped)[:, 5:], atol=1e-6)


def test_rotated_rows_depend_on_their_distance_alone() -> None:
    rotation = Rotation(LENGTH, 8)
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(8, generator=generator).expand(1, 1, LENGTH, 8) for _ in range(2))
    products = rotation(queries)[0, 0] @ rotation(keys)[0, 0].T
    for distance in range(LENGTH):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert products[0, 0].item() == pytest.approx((queries[0, 0, 0] @ keys[0, 0, 0]).item())


def test_an_addition_is_a_product_of_two_factors() -> None:
    layer = LoRALinear(6, 4, 1.0, rank=2, alpha=8.0)
    inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    plain = F.linear(inputs, layer.weight, layer.bias)
    assert torch.equal(layer(inputs), plain)  # the second factor is zero at first
    with torch.no_grad():
        layer.lora_up.fill_(0.5)
    wanted = plain + 4.0 * inputs @ (layer.lora_up @ layer.lora_down).T
    torch.testing.assert_close(layer(inputs), wanted)


def test_additions_alone_are_learned() -> None:
    whole = build(lora_rank=2)
    learned = {name for name, p in whole.named_parameters() if p.requires_grad}
    assert learned == {n for n, _ in whole.named_parameters() if n.rpartition(".")[2] in ADDED}
    assert len(learned) == 2 * 4 * 2  # factors, linear layers, transformer layers
    plain = build()
    with torch.no_grad():
        assert torch.equal(whole(rows()), plain(rows()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 5}, r"model\.heads must divide model\.width = 12, found 5"),
        ({"width": 9, "positions": "rotary"}, r"must be even, found 3"),
        ({"positions": "none"}, r"model\.positions"),
        ({"depth": 0}, r"model\.depth must be at least 1"),
        ({"dropout": 1.0}, r"model\.dropout"),
        ({"mlp_ratio": 0.0}, r"model\.mlp_ratio"),
        ({"lora_rank": -1}, r"model\.lora_rank must be at least 0, found -1"),
        ({"lora_rank": 1, "lora_alpha": 0.0}, r"model\.lora_alpha must be above 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        build(**options)
