"""Blocks on streams of their own, as far as a processor can show it: in any order of streams."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppll.blocks import streams
from ppll.blocks.streams import ConcurrentStreams
from ppll.channels.base import ReceiveEnd, SendEnd
from ppll.ends import Ends
from ppll.message import Kind, Message
from ppll.metrics import Tally
from ppll.worker import Worker
from tests.channels import devices

PROCESSOR = torch.device("cpu")
CAPACITY = 2


class Stream(devices.Stream):
    """A ``torch.cuda.Stream`` that is a queue."""

    device = PROCESSOR

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        gpu.streams.append(self)

    def wait_event(self, event: Event) -> None:
        event.wait(self)

    def wait_stream(self, other: Stream) -> None:
        reached = devices.Event()
        reached.record(other)
        reached.wait(self)


class Event:
    """A ``torch.cuda.Event``, which may be recorded on several streams, one after the other."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._last = devices.Event()

    def record(self) -> None:
        self._last = devices.Event()
        self._last.record(self._gpu.current)

    def wait(self, stream: Stream) -> None:
        self._last.wait(stream)


class Gpu:
    """Streams of one GPU, each of which does a piece of work now and then; stands for torch."""

    def __init__(self, chance: random.Random) -> None:
        self.streams: list[Stream] = []
        self.current = Stream(self)
        self.chance = chance
        self.cuda = SimpleNamespace(
            Stream=lambda device: Stream(self),
            Event=lambda: Event(self),
            stream=self.entered,
            synchronize=lambda device: self.finish(),
            graph_pool_handle=lambda: None,
        )

    @contextmanager
    def entered(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def step(self, idle: devices.Stream | None = None) -> bool:
        able = [s for s in self.streams if s is not idle and s.can_go_on()]
        if able:
            self.chance.choice(able).go_on()
        return bool(able)

    def finish(self) -> None:
        while self.step():
            pass
        assert not any(stream.queue for stream in self.streams)


class FakeBlock:
    """Adds one to its input. It learns from what it took in, which is not to change before.

    A replayed step takes all in first, and lies in memory of its own.
    """

    device, slow, method = PROCESSOR, None, SimpleNamespace(slow_from=None)

    def __init__(self, index: int, gpu: Gpu, is_replayed: Callable[[Message], bool]) -> None:
        self.index = index
        self.site = SimpleNamespace(is_last=False)
        self.learned: list[float] = []
        self._gpu = gpu
        self._is_replayed = is_replayed
        self._own = {name: torch.zeros(1) for name in ("features", "targets", "output")}
        self._inputs: Mapping[str, Tensor] = {}

    def forward(self, message: Message) -> Message:
        add, output = self._gpu.current.add, torch.zeros(1)
        self._inputs = message.tensors
        if self._is_replayed(message):
            for name, source in message.tensors.items():
                add(partial(self._own[name].copy_, source))
            self._inputs, output = self._own, self._own["output"]
        features, targets = self._inputs["features"], self._inputs["targets"]
        add(lambda: output.copy_(features + 1))
        return message.with_tensors(features=output, targets=targets)

    def learn(self, late: object, slow: object) -> dict[str, Tensor]:
        features = self._inputs["features"]
        for _ in range(2):  # at the beginning and at the end
            self._gpu.current.add(lambda: self.learned.append(features.item()))
        return {}

    def take_training(self) -> Tally:
        return Tally(0, 0.0, 0.0)


class Inbox(ReceiveEnd):
    """Slots that are filled again as soon as the work on them is over."""

    fill = 0

    def __init__(self, messages: list[Message], gpu: Gpu) -> None:
        super().__init__(CAPACITY)
        self._messages = messages
        self._gpu = gpu
        self._filling = Stream(gpu)
        self._slots = [torch.zeros(2, 1) for _ in range(CAPACITY)]
        self._num_taken = self._num_released = 0

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def _wait(self, timeout_s: float | None) -> None:
        raise AssertionError("it is always ready")

    def _take(self) -> Message:
        message = self._messages[self._num_taken]
        slot = self._slots[self._num_taken % CAPACITY]
        self._num_taken += 1
        if not message.tensors:
            return message
        self._filling.add(lambda: slot.fill_(message.features.item()))
        self._gpu.current.wait_stream(self._filling)
        features, targets = slot
        return message.with_tensors(features=features, targets=targets)

    def _give_back(self) -> None:
        self._filling.wait_stream(self._gpu.current)
        slot = self._slots[self._num_released % CAPACITY]
        self._num_released += 1
        self._filling.add(lambda: slot.fill_(-1.0))


class Outbox(SendEnd):
    """Copies on a side stream, as the shared channel does between GPUs."""

    fill = 0

    def __init__(self, gpu: Gpu) -> None:
        super().__init__(1000)
        self.sent: list[float] = []
        self.side = Stream(gpu)
        self._gpu = gpu
        self._sent_on = gpu.current

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def _wait(self, timeout_s: float | None) -> None:
        raise AssertionError("it is always ready")

    def _put(self, message: Message) -> None:
        self._sent_on = self._gpu.current
        self.side.wait_stream(self._sent_on)
        for tensor in message.tensors.values():
            self.side.add(lambda read=tensor.item: self.sent.append(read()))

    def flush(self) -> None:
        for stream in {self._sent_on, self._gpu.current}:
            stream.wait_stream(self.side)


class Stage:
    """A worker of some blocks on such a GPU."""

    def __init__(
        self,
        num_blocks: int,
        num_messages: int,
        seed: int,
        monkeypatch: pytest.MonkeyPatch,
        share: float = 0.8,
    ) -> None:
        self.gpu = gpu = Gpu(random.Random(seed))
        monkeypatch.setattr(streams, "torch", gpu)
        monkeypatch.setattr(streams, "_made", defaultdict(list))
        monkeypatch.setattr(streams, "GraphRecorder", lambda stream, pool: None)
        overlaps = [gpu.chance.random() < share for _ in range(num_messages)]
        self.blocks = [
            FakeBlock(i, gpu, lambda message: overlaps[message.sequence]) for i in range(num_blocks)
        ]
        self.streams = ConcurrentStreams(PROCESSOR, num_blocks)
        monkeypatch.setattr(
            self.streams, "may_overlap", lambda first, message: overlaps[message.sequence]
        )
        batch = Message(kind=Kind.TRAIN, sequence=0, step=0)
        values = [torch.full((1,), 100.0 * n) for n in range(num_messages)]
        sent = [
            replace(batch, sequence=n, step=n + 1, tensors={"features": v, "targets": v})
            for n, v in enumerate(values)
        ]
        stop = Message(kind=Kind.STOP, sequence=num_messages, step=0)
        self.outbox = Outbox(gpu)
        ends: Any = Ends(Inbox([*sent, stop], gpu), self.outbox)
        blocks: Any = self.blocks
        self.worker = Worker(blocks, ends, streams=self.streams)

    def run(self) -> None:
        """The host is far ahead of the GPU, which begins when all is queued."""
        with self.streams.home():
            assert list(self.worker.run()) == []

    def goes_wrong(self, num_messages: int) -> bool:
        sent = [100.0 * n for n in range(num_messages)]
        learned = [[value + i for value in sent for _ in range(2)] for i in range(len(self.blocks))]
        found = [block.learned for block in self.blocks]
        passed = [value for n in sent for value in (n + len(self.blocks), n)]
        return found != learned or self.outbox.sent != passed


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 4), st.integers(0, 2**32))
def test_every_block_learns_from_every_message_in_any_order(
    monkeypatch: pytest.MonkeyPatch, num_blocks: int, seed: int
) -> None:
    stage = Stage(num_blocks, 12, seed, monkeypatch)
    stage.run()
    assert not stage.goes_wrong(12)


def without(missing: str, stage: Stage) -> tuple[object, str, Callable[..., Any]]:
    """What leaves out one of the orders: of what, its name, and what is there instead."""
    events = stage.streams._forwarded
    return {
        "before": (stage.streams, "_neighbours", lambda i: events[i + 1 : i + 2]),
        "behind": (stage.streams, "_neighbours", lambda i: events[i - 1 : i] if i else []),
        "join": (stage.streams, "join", lambda: None),
        "flush": (stage.outbox, "flush", lambda: None),
    }[missing]


@pytest.mark.parametrize("missing", ["before", "behind", "join", "flush"])
def test_without_one_of_the_orders_it_goes_wrong(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above would notice."""
    wrong = 0
    for seed in range(40):
        stage = Stage(3, 12, seed, monkeypatch)
        monkeypatch.setattr(*without(missing, stage))
        stage.run()
        wrong += stage.goes_wrong(12)
    assert wrong


def test_a_copy_that_takes_long_holds_up_the_last_block_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every other is a message ahead of the one behind it, whose input it must not overwrite."""
    stage = Stage(3, 9, 0, monkeypatch, share=1.0)
    finish = stage.gpu.finish
    monkeypatch.setattr(stage.gpu, "finish", lambda: None)
    stage.run()
    while stage.gpu.step(idle=stage.outbox.side):
        pass
    assert [len(block.learned) // 2 for block in stage.blocks] == [3, 2, 1]
    finish()
    assert not stage.goes_wrong(9)
