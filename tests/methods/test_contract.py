"""What every method of the zoo keeps to, whatever the network."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor

from ppll.blocks.block import Block
from ppll.message import Kind, Message
from ppll.methods import methods
from ppll.metrics import Tally
from tests.interleaving import (
    NETWORKS,
    NUM_CLASSES,
    MadeUpBatches,
    blueprint_of,
    built_blocks,
    digest,
    small_recipe,
    train_interleaved,
)
from tests.thinning import KINDS_OF_METHODS, slow_but

LOCAL = [entry.name for entry in methods if not entry.build.end_to_end]
SILENT = {"lopt", "scpl"}
"""Methods whose blocks but the last learn without a prediction."""
CHANCE_LOSS = math.log(NUM_CLASSES)
EPOCHS = {"resnet": 10, "vit": 15}
"""In which every method learns what there is to learn."""
EVERY_PAIR = [(network, name) for network in NETWORKS for name in LOCAL]
TRIED = [*(("resnet", name) for name in (*KINDS_OF_METHODS, "zerolock")), ("vit", "infopro")]
END_TO_END = [entry.name for entry in methods if entry.build.end_to_end]

every_local_method = pytest.mark.parametrize("method", LOCAL)
every_network = pytest.mark.parametrize("network", NETWORKS)


def first_blocks(network: str, method: str) -> list[Block]:
    return built_blocks(blueprint_of(small_recipe(network, method), MadeUpBatches()))


def batch(kind: Kind, index: int = 0) -> Message:
    return Message(kind=kind, sequence=0, step=1, tensors=MadeUpBatches().train_batch(0, index))


def exits(blocks: list[Block], message: Message) -> list[Tensor | None]:
    """Every block's prediction for an evaluation batch."""
    predictions = []
    with torch.no_grad():
        for block in blocks:
            message = block.forward(message)
            predictions.append(block.method.exit(block.modules.auxiliary, message.features))
            block.evaluate()
    return predictions


def tallies(blocks: list[Block]) -> list[Tally]:
    """What every exit gets right of what it was trained on."""
    for index in range(MadeUpBatches().steps_per_epoch):
        exits(blocks, batch(Kind.EVALUATE, index))
    return [block.counts.take() for block in blocks]


@functools.cache
def sequential_digest(network: str, method: str) -> str:
    return digest(train_interleaved(small_recipe(network, method), num_stages=1))


@every_local_method
def test_a_method_says_where_it_comes_from(method: str) -> None:
    paper = methods[method].build.paper
    assert paper.title
    assert paper.source
    assert paper.year > 1900


@every_network
@every_local_method
def test_learning_of_a_block_touches_no_other(method: str, network: str) -> None:
    """The last block is the first to learn: what it touches of others is what they need yet."""
    blocks = first_blocks(network, method)
    message = batch(Kind.TRAIN)
    for block in blocks:
        message = block.forward(message)
    digests = [digest([block]) for block in blocks]
    for learner in (3, 2, 1, 0):
        slow = blocks[learner].slow
        blocks[learner].learn(slow=slow.take() if slow is not None else None)
        gradients = [take_gradients(block) for block in blocks]
        assert all(g is not None for g in gradients.pop(learner))
        assert all(g is None for others in gradients for g in others)
        before, digests = digests, [digest([block]) for block in blocks]
        assert [i for i in range(4) if digests[i] != before[i]] == [learner]


def take_gradients(block: Block) -> list[Tensor | None]:
    """Of all that is trained; afterwards there are none."""
    trained = [p for _, p in block.modules.named_parameters() if p.requires_grad]
    gradients = [parameter.grad for parameter in trained]
    for parameter in trained:
        parameter.grad = None
    return gradients


@every_network
@every_local_method
def test_every_block_predicts_or_the_last_alone_does(method: str, network: str) -> None:
    *predictions, final = exits(first_blocks(network, method), batch(Kind.EVALUATE))
    assert len(predictions) == 3
    assert [p is None for p in predictions] == [method in SILENT] * 3
    for prediction in (final, *(p for p in predictions if p is not None)):
        assert prediction is not None
        assert prediction.shape == (6, NUM_CLASSES)
        assert prediction.dtype == torch.float32


@pytest.mark.parametrize(("network", "method"), slow_but(TRIED, EVERY_PAIR))
def test_the_same_bits_on_three_stages(network: str, method: str) -> None:
    """Two blocks on one of them, and the others by themselves."""
    blocks = train_interleaved(small_recipe(network, method), num_stages=3)
    assert digest(blocks) == sequential_digest(network, method)


@pytest.mark.parametrize(
    ("network", "method"),
    slow_but([("resnet", "man"), ("vit", "infopro")], EVERY_PAIR),
)
def test_every_exit_learns(network: str, method: str) -> None:
    """Where blocks hear nothing of the task it takes longer."""
    epochs = EPOCHS[network] * (4 if method == "lopt" else 1)
    recipe = small_recipe(network, method, "adamw", epochs=epochs, evaluate_every=0)
    found = tallies(train_interleaved(recipe, num_stages=1))
    predicting = found[-1:] if method in SILENT else found
    assert len(found) == 4
    assert max(tally.loss for tally in predicting) < 0.9 * CHANCE_LOSS
    assert found[-1].accuracy >= 0.8


@every_network
@pytest.mark.parametrize("method", END_TO_END)
def test_an_end_to_end_method_is_one_block_and_learns(method: str, network: str) -> None:
    recipe = small_recipe(network, method, "adamw", epochs=EPOCHS[network], evaluate_every=0)
    blocks = train_interleaved(recipe, num_stages=1)
    assert len(blocks) == 1
    assert blocks[0].modules.auxiliary is None
    assert tallies(blocks)[0].accuracy >= 0.8
