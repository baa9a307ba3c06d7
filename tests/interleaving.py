"""Whole pipelines in one process: small networks, made-up batches, workers in any order."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppll.blocks.block import Block
from ppll.blocks.blueprint import Blueprint
from ppll.blocks.slow import SlowParameters
from ppll.channels.local import local_channel
from ppll.checkpoints.checkpoint import tensor_digest
from ppll.config import Recipe
from ppll.data.loader import IMAGE
from ppll.ends import Ends
from ppll.job import DataFacts, draw_blueprint
from ppll.message import FEATURES, TARGETS, Kind, Message
from ppll.models.initialising import initialise
from ppll.models.network import Network
from ppll.stream import training_stream
from ppll.worker import Worker

NUM_CLASSES = 3
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet": {"name": "resnet", "depth": 14, "width": 8},
    "vit": {"name": "vit", "patch_size": 4, "width": 16, "depth": 4, "heads": 2, "dropout": 0.2},
}
TEXT_NETWORKS: dict[str, dict[str, Any]] = {
    "gpt": {"name": "gpt", "width": 16, "depth": 4, "heads": 2, "dropout": 0.2},
    "gpt-rotary": {"name": "gpt", "width": 16, "depth": 4, "heads": 2, "positions": "rotary"},
    "gpt-lora": {"name": "gpt", "width": 16, "depth": 4, "heads": 2, "lora_rank": 2},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.05},
    "adamw": {"name": "adamw", "lr": 0.01, "clip_norm": 1.0},
}


class MadeUpBatches:
    """Small random images with classes that can be learned; the last batch is short."""

    splits = ("test",)

    def __init__(
        self, sizes: Sequence[int] = (6, 6, 3), shape: tuple[int, ...] = (1, 8, 8)
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        means = torch.randn(NUM_CLASSES, *shape, generator=generator)
        self._batches = []
        for size in sizes:
            targets = torch.randint(NUM_CLASSES, (size,), generator=generator)
            noise = torch.randn(size, *shape, generator=generator)
            inputs = means[targets] + 0.5 * noise
            image = (inputs * 40 + 128).clamp(0, 255).to(torch.uint8)
            self._batches.append({FEATURES: inputs, TARGETS: targets, IMAGE: image})

    @property
    def steps_per_epoch(self) -> int:
        return len(self._batches)

    @property
    def facts(self) -> DataFacts:
        return DataFacts((1, 8, 8), NUM_CLASSES, self.steps_per_epoch)

    def num_samples(self, index: int) -> int:
        return len(self._batches[index][TARGETS])

    def train_batch(self, epoch: int, index: int) -> Mapping[str, Tensor]:
        return self._batches[index]

    def evaluation_batches(self, split: str) -> Iterator[Mapping[str, Tensor]]:
        return iter(self._batches)


class MadeUpText(MadeUpBatches):
    """Rows of tokens, each of which is followed by the next one, often enough to be learned."""

    def __init__(self, sizes: Sequence[int] = (6, 6, 3), num_tokens: int = 8) -> None:
        generator = torch.Generator().manual_seed(0)
        self._batches = []
        for size in sizes:
            starts = torch.randint(NUM_CLASSES, (size, 1), generator=generator)
            rows = (starts + torch.arange(num_tokens + 1)) % NUM_CLASSES
            is_noise = torch.rand(rows.shape, generator=generator) < 0.1
            noise = torch.randint(NUM_CLASSES, rows.shape, generator=generator)
            rows = torch.where(is_noise, noise, rows)
            self._batches.append({FEATURES: rows[:, :-1].clone(), TARGETS: rows[:, 1:].clone()})

    @property
    def facts(self) -> DataFacts:
        shape = tuple(self._batches[0][FEATURES].shape[1:])
        return DataFacts(
            shape, NUM_CLASSES, self.steps_per_epoch, num_tokens=NUM_CLASSES, predicts_tokens=True
        )


class ListInbox:
    """An inbox whose messages are all there from the start."""

    capacity = 1
    fill = 0

    def __init__(self, messages: Iterator[Message]) -> None:
        self._messages = list(messages)[::-1]

    def ready(self) -> bool:
        return bool(self._messages)

    def wait(self, timeout_s: float | None = None) -> bool:
        return self.ready()

    def recv(self, timeout_s: float | None = None) -> Message:
        return self._messages.pop()

    def release(self, message: Message) -> None:
        pass

    def close(self) -> None:
        pass


def small_recipe(
    network: str = "resnet",
    method: str = "dgl",
    optimizer: str = "sgd",
    split_blocks: int = 4,
    **train: Any,
) -> Recipe:
    return Recipe.from_dict(
        {
            "data": {"batch_size": 6},
            "model": (NETWORKS | TEXT_NETWORKS)[network],
            "split": {"blocks": split_blocks},
            "method": {"name": method},
            "optimizer": OPTIMIZERS[optimizer],
            "schedule": {"warmup_epochs": 0.5},
            "train": {"epochs": 2, **train},
        }
    )


def blueprint_of(recipe: Recipe, batches: MadeUpBatches) -> Blueprint:
    return drawn(recipe, batches.facts)


def drawn(recipe: Recipe, facts: DataFacts) -> Blueprint:
    """A network is made and tried once for all tests of a process: no blueprint changes it."""
    key = f"{recipe.model!r} {facts!r}"
    if key not in _networks:
        first = draw_blueprint(recipe, facts, network=None)
        _networks[key] = (first.network, first.shapes)
    return draw_blueprint(recipe, facts, *_networks[key])


_networks: dict[str, tuple[Network, tuple[tuple[int, ...], ...]]] = {}


def built_blocks(blueprint: Blueprint) -> list[Block]:
    """All blocks with their first values, as every placement starts from them."""
    blocks = [blueprint.build_block(i, torch.device("cpu")) for i in range(blueprint.num_blocks)]
    for block in blocks:
        for prefix, module in block.modules.named():
            initialise(module, prefix, blueprint.recipe.train.seed)
        if block.averages is not None:
            block.averages.load({})
    if blueprint.method.slow_from is not None:
        for reader, block in itertools.pairwise(blocks):
            read = blocks[-1] if blueprint.method.slow_from == "last" else block
            first = read.published_parameters()
            reader.slow = SlowParameters(first.expand(blueprint.method.lag, -1).clone())
    return blocks


def train_interleaved(
    recipe: Recipe,
    num_stages: int,
    *,
    capacity: int = 2,
    choose: Callable[[int], int] = lambda num_able: 0,
    batches: MadeUpBatches | None = None,
) -> list[Block]:
    """Train on ``num_stages`` workers that take turns as ``choose`` says.

    Channels are poisoned: a block that uses a slot after giving it back learns from NaN.
    """
    batches = batches or MadeUpBatches()
    blueprint = blueprint_of(recipe, batches)
    blocks = built_blocks(blueprint)
    interleave(make_workers(blueprint, blocks, batches, num_stages, capacity), choose)
    return blocks


def interleave(workers: Sequence[Worker], choose: Callable[[int], int]) -> None:
    """Run workers to their end; ``choose`` picks who goes on among those who can."""
    running = [worker.run() for worker in workers]
    waits: list[Any] = [None for _ in workers]
    while running:
        able = [i for i, wait in enumerate(waits) if wait is None or wait.ready()]
        index = able[choose(len(able))]
        waits[index] = next(running[index], None)
        if waits[index] is None:
            del running[index], waits[index]


def make_workers(
    blueprint: Blueprint,
    blocks: list[Block],
    batches: MadeUpBatches,
    num_stages: int,
    capacity: int,
    kinds: Sequence[Kind] = tuple(Kind),
) -> list[Worker]:
    """One worker a stage, joined by poisoned local channels; ``kinds`` of messages reach them."""
    stream = training_stream(batches, blueprint.recipe, blueprint.num_steps)
    kept = [message for message in stream if message.kind in kinds]
    inbox: Any = ListInbox(replace(m, sequence=i) for i, m in enumerate(kept))
    stages = blueprint.stage_blocks(num_stages)
    workers: list[Worker] = []
    late_inbox = None
    slow_outboxes: tuple[Any, ...] = ()
    reads_last = blueprint.method.slow_from == "last"
    for stage, indices in enumerate(stages):
        is_last = stage == num_stages - 1
        outbox, next_inbox = channel(not is_last, capacity)
        late_outbox, next_late_inbox = channel(
            not is_last and bool(blueprint.method.late_fields), capacity
        )
        next_slow_outbox, slow_inbox = channel(
            not is_last and blueprint.method.slow_from is not None, blueprint.method.lag + 1
        )
        own = slow_outboxes if is_last or not reads_last else ()
        ends = Ends(inbox, outbox, late_inbox, late_outbox, slow_inbox, own)
        workers.append(Worker([blocks[i] for i in indices], ends))
        inbox, late_inbox = next_inbox, next_late_inbox
        if next_slow_outbox is not None:
            slow_outboxes = (*(slow_outboxes if reads_last else ()), next_slow_outbox)
    return workers


def channel(is_there: bool, capacity: int) -> tuple[Any, Any]:
    """Both ends of a poisoned local channel, or nothing."""
    return local_channel(capacity, poison=True) if is_there else (None, None)


def digest(blocks: Sequence[Block]) -> str:
    """Hash of all parameters, buffers and optimizer states."""
    lines = [tensor_digest(*item) for block in blocks for item in block.modules.named_tensors()]
    lines += [tensor_digest(*item) for block in blocks for item in block.optimizer_tensors()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
