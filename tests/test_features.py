"""The features of every block of a trained network, beside what blocks send in an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

import ppll
from ppll.blocks.lean import FeaturesType, opened
from ppll.config import Recipe
from ppll.message import FEATURES, Kind, Message
from ppll.numerics import autocast_dtype
from ppll.trained.inference import TrainedNetwork
from tests.faults import recipe
from tests.interleaving import MadeUpBatches, MadeUpText, blueprint_of, built_blocks, small_recipe
from tests.test_exits import linear_network


def sent(recipe: Recipe, batches: MadeUpBatches) -> tuple[TrainedNetwork, Tensor, list[Tensor]]:
    """A network, a batch, and what its blocks send to each other of it."""
    blueprint = blueprint_of(recipe, batches)
    blocks = built_blocks(blueprint)
    features_type = recipe.split.features_dtype
    network = TrainedNetwork(
        [block.modules for block in blocks],
        blueprint.method,
        batches.facts,
        0,
        autocast=autocast_dtype(recipe.train),
        features_type=features_type,
    )
    tensors = batches.train_batch(0, 0)
    message = Message(kind=Kind.EVALUATE, sequence=0, step=0, tensors=tensors)
    received = []
    for block in blocks:
        message = block.forward(message)
        fields = message.tensors if block.site.is_last else opened(message.tensors, features_type)
        received.append(fields[FEATURES].float())
    return network, tensors[FEATURES], received


@pytest.mark.parametrize("features_type", [None, *get_args(FeaturesType)])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(("kind", "method"), [("resnet", "dgl"), ("vit", "sgr"), ("gpt", "dgl")])
def test_they_are_to_the_bit_what_a_block_gets(
    kind: str, method: str, precision: str, features_type: str | None
) -> None:
    cut = [f"split.features_dtype={features_type}"] if features_type else []
    batches = MadeUpText() if kind == "gpt" else MadeUpBatches()
    setting = small_recipe(kind, method, precision=precision).with_settings(cut)
    network, inputs, received = sent(setting, batches)
    with torch.no_grad():
        found, logits = network.features(inputs), network(inputs)
    assert len(found) == len(received) == 4
    assert all(torch.equal(one, other) for one, other in zip(found, received, strict=True))
    assert {features.dtype for features in found} == {torch.float32}
    assert torch.equal(found[-1], logits)


def test_by_hand() -> None:
    network = linear_network()
    inputs = torch.randn(7, 2)
    first, second, third = network.blocks
    with torch.no_grad():
        found = network.features(inputs)
        expected = [first(inputs), second(first(inputs)), third(second(first(inputs)))]
    assert [tuple(features.shape) for features in found] == [(7, 5), (7, 4), (7, 3)]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_gradients_flow_as_in_forward() -> None:
    network = linear_network()
    found, logits = network.features(torch.ones(1, 2)), network(torch.ones(1, 2))
    for outputs in (found[-1], logits):
        network.zero_grad()
        outputs.sum().backward()
        assert all(p.grad is not None for p in network.blocks.parameters())
    with torch.no_grad():
        assert not any(features.requires_grad for features in network.features(torch.ones(1, 2)))


def test_images_in_bytes_are_normalised(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8)
    data = ppll.Dataset.from_arrays(train=(images, [0, 1] * 30), test=(images, [0, 1] * 30))
    whole = recipe().with_settings(["data.validation=0", "train.max_steps=1"])
    ppll.Trainer(whole, data=data, out=tmp_path / "run").fit()
    network = ppll.load(tmp_path / "run")
    assert network.facts.mean is not None
    assert network.facts.std is not None
    scaled = (images / 255 - network.facts.mean[0]) / network.facts.std[0]
    with torch.no_grad():
        pairs = zip(network.features(images), network.features(scaled), strict=True)
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in pairs)


def test_one_block_has_the_final_output_alone(tmp_path: Path) -> None:
    settings = ["method.name=backprop", "method.exits=linear", "train.max_steps=1"]
    ppll.Trainer(recipe().with_settings(settings), out=tmp_path / "run").fit()
    network = ppll.load(tmp_path / "run")
    inputs = torch.randn(3, 1, 8, 8)
    (found,) = network.features(inputs)
    assert torch.equal(found, network(inputs))
