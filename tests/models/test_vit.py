"""Vision transformers: their rows, their sizes and their parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ppll.errors import RecipeError
from ppll.models import feature_shapes, models
from ppll.models.vit import PatchEmbedding, SelfAttention, TransformerLayer, vit


@pytest.mark.parametrize(("name", "expected"), [("vit-tiny", 5_717_416), ("vit-small", 22_050_664)])
def test_parameters_are_those_of_deit(name: str, expected: int) -> None:
    # DeiT's table 1 rounds these to 5 M and 22 M: ImageNet, patches of 16 x 16.
    with torch.device("meta"):
        network = models.build(name, {"patch_size": 16}, (3, 224, 224), 1000)
    assert sum(p.numel() for p in network.as_module().parameters()) == expected


def test_parameters_by_hand() -> None:
    network = vit((3, 32, 32), 10, width=8, depth=2, heads=2, mlp_ratio=2.0)
    stem = (48 * 8 + 8) + 8 + 65 * 8
    attention = (8 * 24 + 24) + (8 * 8 + 8)
    mlp = (8 * 16 + 16) + (16 * 8 + 8)
    layer = 16 + attention + 16 + mlp
    head = 16 + 8 * 10 + 10
    total = sum(p.numel() for p in network.as_module().parameters())
    assert total == stem + 2 * layer + head


def test_the_row_and_its_shapes() -> None:
    network = vit((3, 32, 16), 10, width=8, depth=3, heads=2)
    names = [layer.name for layer in network.layers]
    assert names == ["stem", "layer0", "layer1", "layer2", "head"]
    assert (network.num_stem, network.num_head) == (1, 1)
    tokens = 1 + 8 * 4
    assert feature_shapes(network, (3, 32, 16)) == [(tokens, 8)] * 4 + [(10,)]


def test_tokens_are_patches_in_reading_order_behind_the_class_token() -> None:
    stem = PatchEmbedding(1, num_patches=4, patch_size=2, width=3, dropout=0.0)
    images = torch.randn(2, 1, 4, 4)
    tokens = stem(images)
    class_tokens = stem.class_token[0, 0] + stem.positions[0, 0]
    assert torch.allclose(tokens[:, 0], class_tokens.expand(2, 3))
    upper_right = stem.projection(images[:, :, :2, 2:]).flatten(1)
    assert torch.allclose(tokens[:, 2], upper_right + stem.positions[0, 2], atol=1e-6)


def test_attention_is_softmax_of_scaled_products() -> None:
    attention = SelfAttention(width=6, heads=2)
    tokens = torch.randn(2, 5, 6)
    queries, keys, values = attention.qkv(tokens).split(6, dim=2)
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        products = queries[..., part] @ keys[..., part].mT / 3**0.5
        heads.append(products.softmax(2) @ values[..., part])
    expected = attention.projection(torch.cat(heads, dim=2))
    assert torch.allclose(attention(tokens), expected, atol=1e-6)


def test_dropout_is_drawn_from_the_default_generator_in_training_only() -> None:
    layer = TransformerLayer(width=8, heads=2, hidden=16, dropout=0.5)
    tokens = torch.randn(2, 5, 8)
    runs = [torch.random.fork_rng(devices=()) for _ in range(2)]
    outputs = []
    for run in runs:
        with run:
            torch.manual_seed(7)
            outputs.append(layer(tokens))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(layer(tokens), layer(tokens))
    layer.eval()
    assert torch.equal(layer(tokens), layer(tokens))


def test_the_class_token_and_positions_do_not_decay() -> None:
    stem = vit((3, 8, 8), 10).layers[0].module
    assert isinstance(stem, PatchEmbedding)
    own = {name for name, _ in stem.named_parameters(recurse=False)}
    assert PatchEmbedding.no_decay == own == {"class_token", "positions"}


def test_a_fresh_network_is_nearly_undecided() -> None:
    logits = vit((3, 8, 8), 10, depth=2).as_module().eval()(torch.randn(500, 3, 8, 8))
    loss = F.cross_entropy(logits, torch.arange(500) % 10)
    assert loss.item() == pytest.approx(torch.tensor(10.0).log().item(), abs=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 5}, "model.patch_size = 5 must divide .* found 32 x 32"),
        ({"patch_size": 0}, "model.patch_size must be at least 1, found 0"),
        ({"width": 64, "heads": 3}, "model.heads must divide model.width = 64, found 3"),
        ({"depth": 0}, "model.depth must be at least 1, found 0"),
        ({"mlp_ratio": 0.0}, "model.mlp_ratio .* found 0.0"),
        ({"dropout": 1.0}, "model.dropout .* found 1.0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        models.build("vit", options, (3, 32, 32), 10)
