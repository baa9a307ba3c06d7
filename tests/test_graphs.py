"""Recorded blocks, with a recorder that does the work again in place of a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ppll.blocks.block import Block
from ppll.blocks.graphs import RecordedBlock
from ppll.config import Recipe
from ppll.devices import check_devices
from ppll.errors import ModelError, RecipeError
from ppll.message import Kind, Message
from ppll.models.initialising import initialise
from ppll.trainer import Trainer
from tests.interleaving import MadeUpBatches, blueprint_of, small_recipe


class Again:
    """Takes down work as a graph does, and does it again when it is replayed."""

    def __init__(self) -> None:
        self.num_recorded = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.num_recorded += 1
        return work


class Unable:
    """Fails as CUDA does when something looks at the device: so does the end of the recording."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")


class Full:
    """Has no memory left."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        raise torch.OutOfMemoryError("CUDA out of memory.")


class FullInside:
    """Has no memory left while it records, and cannot end that either."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")


def make_blocks(recorder: Any, **settings: Any) -> list[Block]:
    recipe = small_recipe(split_blocks=2, **settings)
    recipe = recipe.with_settings(["optimizer.fused=true"])
    blueprint = blueprint_of(recipe, MadeUpBatches())
    blocks = [blueprint.build_block(i, torch.device("cpu"), recorder) for i in range(2)]
    for block in blocks:
        for prefix, module in block.modules.named():
            initialise(module, prefix, recipe.train.seed)
        if block.averages is not None:
            block.averages.load({})
    return blocks


def messages(*sizes: int) -> list[Message]:
    batches = MadeUpBatches(sizes)
    return [
        Message(kind=Kind.TRAIN, sequence=i, step=i + 1, tensors=dict(batches.train_batch(0, i)))
        for i in range(len(sizes))
    ]


def learn(blocks: list[Block], message: Message) -> None:
    late: dict[str, torch.Tensor] = {}
    for block in blocks:
        message = block.forward(message)
        late = block.learn(late)


def state(blocks: list[Block]) -> dict[str, torch.Tensor]:
    tensors = [pair for b in blocks for pair in (*b.modules.named_tensors(), *b.named_averages())]
    return {name: tensor.clone() for name, tensor in tensors}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"network": "vit", "optimizer": "adamw"},
        {"method": "sgr"},
        {"method": "contsup"},
        {"ema": 0.9, "precision": "bf16"},
    ],
    ids=str,
)
def test_recorded_blocks_learn_as_others_do(settings: dict[str, Any]) -> None:
    sent = messages(6, 6, 3, 6, 6, 6, 3, 6)
    recorder = Again()
    recorded, plain = make_blocks(recorder, **settings), make_blocks(None, **settings)
    for message in sent:
        learn(recorded, message)
        learn(plain, message)
    assert recorder.num_recorded == 2 * len(recorded)  # A forward and a learning step each.
    expected = state(plain)
    for name, tensor in state(recorded).items():
        assert torch.equal(tensor, expected[name]), name
    for one, other in zip(recorded, plain, strict=True):
        assert one.take_training() == other.take_training()


def test_only_the_form_that_is_seen_first_often_enough_is_recorded() -> None:
    block, _ = make_blocks(Again())
    usual, short = messages(6, 3)
    for step in range(1, 9):
        for message in (usual, short):
            assert isinstance(block, RecordedBlock)
            assert block.has_recorded(message) == (message is usual and step > 4)
            block.forward(replace(message, step=step))
            block.learn()


def test_what_a_block_sends_lies_in_its_own_memory_not_the_loaders() -> None:
    first, _ = make_blocks(Again())
    (message,) = messages(6)
    sent = []
    for step in range(1, 7):
        sent.append(first.forward(replace(message, step=step)))
        first.learn()
    assert sent[-1].targets is sent[-2].targets  # They lie in the recording's own memory,
    assert sent[-1].targets is not message.targets  # not in that of the loader.


def test_evaluation_is_never_recorded() -> None:
    recorder = Again()
    block, _ = make_blocks(recorder)
    (message,) = messages(6)
    for _ in range(6):
        block.forward(replace(message, kind=Kind.EVALUATE, split="test"))
        block.evaluate()
    assert recorder.num_recorded == 0
    assert block.counts.take().samples == 36


def test_what_cannot_be_recorded_is_named() -> None:
    block, _ = make_blocks(Unable())
    (message,) = messages(6)
    for step in range(1, 4):
        block.forward(replace(message, step=step))
        block.learn()
    with pytest.raises(ModelError, match=r"block 0 cannot be recorded .*\(operation not permitted"):
        block.forward(replace(message, step=4))


@pytest.mark.parametrize("recorder", [Full(), FullInside()])
def test_memory_that_is_not_there_hinders_nothing_else(recorder: Any) -> None:
    block, _ = make_blocks(recorder)
    (message,) = messages(6)
    for step in range(1, 4):
        block.forward(replace(message, step=step))
        block.learn()
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        block.forward(replace(message, step=4))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["train.precision=fp16"], 'precision = "fp16"'),
        (["train.on_nonfinite=skip"], 'on_nonfinite = "skip"'),
        (["train.accumulate=2"], "accumulate above 1"),
        (["train.replicas=2"], "replicas above 1"),
        (["train.activation_checkpointing=true"], "activation_checkpointing"),
        (["optimizer.fused=false"], r"optimizer\.fused = false"),
    ],
)
def test_a_step_that_decides_on_the_host_is_refused(settings: list[str], expected: str) -> None:
    recipe = Recipe().with_settings(["train.cuda_graphs=true"])
    with pytest.raises(RecipeError, match=expected):
        recipe.with_settings(settings)


def test_blocks_overlap_only_where_steps_are_recorded() -> None:
    with pytest.raises(RecipeError, match=r"set train\.cuda_graphs = true"):
        Recipe().with_settings(["runtime.concurrent_blocks=true"])


def test_graphs_need_gpus() -> None:
    recipe = Recipe().with_settings(["train.cuda_graphs=true"])
    with pytest.raises(RecipeError, match=r"runtime\.devices is 'auto': set"):
        check_devices(recipe)


@pytest.mark.parametrize("method", ["sgr", "man"])
def test_blocks_that_exchange_more_than_features_do_not_overlap(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppll.checks.check_devices", lambda recipe: None)
    settings = ["train.cuda_graphs=true", "runtime.concurrent_blocks=true"]
    recipe = Recipe().with_settings([*settings, f"method.name={method}"])
    with pytest.raises(RecipeError, match="exchange more than features"):
        Trainer(recipe)
