"""LoPT: what its blocks learn from, and that they need no labels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ppll.blocks.blueprint import build_method
from ppll.errors import ModelError, RecipeError
from ppll.job import DataFacts, draw_blueprint
from ppll.losses.classification import cross_entropy
from ppll.message import TARGETS, Kind, Message
from ppll.methods import Lesson
from ppll.methods.lopt import LoPT
from ppll.models.network import Network
from tests.faults import recipe
from tests.interleaving import (
    MadeUpBatches,
    blueprint_of,
    built_blocks,
    digest,
    small_recipe,
    train_interleaved,
)


class Halved(nn.Module):
    """A decoder whose result is half of what it reads."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features / 2


def test_the_loss_by_hand() -> None:
    """10 / 4 * (0 + 1 + 1 + 4), and no prediction."""
    inputs = torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    features = torch.tensor([[2.0, 0.0], [2.0, 4.0]])
    lesson = Lesson(inputs, features, torch.tensor([0, 1]))
    loss = LoPT().local_loss(Halved(), lesson, cross_entropy)
    assert loss.value.item() == 10 * (0 + 1 + 1 + 4) / 4
    assert loss.logits is None
    assert LoPT(weight=2.0).local_loss(Halved(), lesson, cross_entropy).value.item() == 3


def test_the_last_block_learns_the_task() -> None:
    logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    lesson = Lesson(logits, logits, targets)
    loss = LoPT().local_loss(None, lesson, cross_entropy)
    assert torch.equal(loss.value, cross_entropy(logits, targets))
    assert LoPT().exit(None, logits) is logits


@pytest.mark.parametrize("network", ["resnet", "vit"])
def test_only_the_last_block_sees_labels(network: str) -> None:
    digests = []
    for shift in (0, 1):
        blocks = built_blocks(blueprint_of(small_recipe(network, "lopt"), MadeUpBatches()))
        batch = dict(MadeUpBatches().train_batch(0, 0))
        batch[TARGETS] = (batch[TARGETS] + shift) % 3
        message = Message(kind=Kind.TRAIN, sequence=0, step=1, tensors=batch)
        for block in blocks:
            message = block.forward(message)
            block.learn()
        digests.append([digest([block]) for block in blocks])
    assert digests[0][:3] == digests[1][:3]
    assert digests[0][3] != digests[1][3]


@pytest.mark.parametrize("network", ["resnet", "vit"])
def test_the_last_block_learns_the_task_on_what_the_others_make(network: str) -> None:
    """It alone does, so it learns less in the time than with other methods."""
    recipe = small_recipe(network, "lopt", "adamw", epochs=15, evaluate_every=0)
    blocks = train_interleaved(recipe, num_stages=1)
    for block in blocks:
        block.counts.take()
    for index in range(3):
        message = Message(
            kind=Kind.EVALUATE, sequence=0, step=1, tensors=MadeUpBatches().train_batch(0, index)
        )
        for block in blocks:
            message = block.forward(message)
            block.evaluate()
    found = [block.counts.take() for block in blocks]
    assert found[-1].accuracy >= 0.6
    assert all(math.isnan(tally.accuracy) and math.isnan(tally.loss) for tally in found[:-1])


def test_a_network_whose_inputs_cannot_be_found_again_is_refused() -> None:
    network = Network.from_modules(
        [nn.ConvTranspose2d(1, 2, 2, 2), nn.Flatten(), nn.Linear(512, 3)]
    )
    with pytest.raises(
        ModelError, match=r"no way from \(2, 16, 16\) back to \(1, 8, 8\) in block 0"
    ):
        draw_blueprint(
            small_recipe(method="lopt", split_blocks=2), DataFacts((1, 8, 8), 3, 3), network
        ).outline(0)


@pytest.mark.parametrize("network", ["resnet", "vit"])
def test_the_first_block_finds_its_images_again(network: str) -> None:
    recipe = small_recipe(network, "lopt", "adamw", epochs=20)
    block = built_blocks(blueprint_of(recipe, MadeUpBatches()))[0]
    losses = []
    for step in range(1, 61):
        batch = MadeUpBatches().train_batch(0, step % 2)
        block.forward(Message(kind=Kind.TRAIN, sequence=step, step=step, tensors=batch))
        block.learn()
        losses.append(block.counts.take().loss)
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("method.weight=0", "method.weight must be above 0"),
        ("method.lag=2", "unknown option of method 'lopt' 'method.lag'"),
        ("method.auxiliary=linear", "unknown option of method 'lopt' 'method.auxiliary'"),
    ],
)
def test_options_that_cannot_be_are_refused(setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_method(recipe().with_settings(["method.name=lopt", setting]))
