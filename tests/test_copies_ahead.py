"""Copies beside the work on a GPU, as far as a processor can show it: in any order of streams."""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppll.copies_ahead import CopiesAhead
from ppll.message import Kind, Message
from ppll.prefetch import Prefetcher
from tests.channels import devices
from tests.channels.devices import PROCESSOR, Stream

NUM_ELEMENTS = 8


class Event(devices.Event):
    """One that a host can wait for, while the GPU goes on."""

    def __init__(self, step: Callable[[], bool]) -> None:
        super().__init__()
        self._step = step

    def synchronize(self) -> None:
        while not self.query():
            assert self._step(), "waits for what cannot come"


class Gpu:
    """Two streams with a will of their own, and the allocator's memory of the side stream.

    Memory is free for the side stream's next copy as soon as the last reference to its tensor is
    gone, whatever another stream still does with it.
    """

    def __init__(self, chance: random.Random) -> None:
        self.side, self.receiving = Stream(), Stream()
        self.memory: dict[int, Tensor] = {}
        self.free: list[Tensor] = []
        self.num_pinned = self.most_pinned = 0
        self._chance = chance

    def step(self) -> bool:
        """Do some piece of work that can be done; whether there was one."""
        able = [stream for stream in (self.side, self.receiving) if stream.can_go_on()]
        if able:
            self._chance.choice(able).go_on()
        return bool(able)

    def finish(self) -> None:
        while self.step():
            pass
        assert not self.side.queue
        assert not self.receiving.queue

    def copy(self, source: Tensor) -> Tensor:
        """Queue a copy on the side stream."""
        memory = self.free.pop() if self.free else torch.zeros(NUM_ELEMENTS)
        self.memory[memory.data_ptr()] = memory
        tensor = memory.view(NUM_ELEMENTS)
        weakref.finalize(tensor, self.free.append, memory)
        self.num_pinned += 1
        self.most_pinned = max(self.most_pinned, self.num_pinned)
        self.side.add(lambda: self._arrive(memory, source))
        return tensor

    def _arrive(self, memory: Tensor, pinned: Tensor) -> None:
        memory.copy_(pinned)
        self.num_pinned -= 1

    def work_on(self, message: Message, read: list[float]) -> None:
        """Queue work that reads a message's memory at its beginning and at its end."""
        memory = self.memory[message.features.data_ptr()]
        for _ in range(2):
            self.receiving.add(lambda: read.append(float(memory.mean())))


class QueuedCopies(CopiesAhead):
    """Copies to such a GPU."""

    def __init__(self, capacity: int, gpu: Gpu) -> None:
        self.gpu = gpu
        super().__init__(
            capacity,
            PROCESSOR,
            side=gpu.side,
            current=lambda: gpu.receiving,
            new_event=lambda: Event(gpu.step),
        )

    def _copy(self, message: Message) -> Message:
        return message.with_tensors(features=self.gpu.copy(message.features))


def message(number: int) -> Message:
    tensors = {"features": torch.full((NUM_ELEMENTS,), float(number))}
    return Message(kind=Kind.TRAIN, sequence=number, step=number + 1, tensors=tensors)


def pass_messages(copies: QueuedCopies, capacity: int, number: int, seed: int) -> list[float]:
    """What the work on each message read, at its beginning and at its end.

    Both hosts run as far ahead as they may, in any order. The receiver lets go of a message when it
    likes after it has left, but before the next one leaves.
    """
    chance, read = random.Random(seed), list[float]()
    started: list[Message] = []
    held: list[Message] = []
    num_started = num_left = num_arrived = 0
    while num_left < number:
        action = chance.choice(("start", "arrive", "leave", "let go", "device"))
        if action == "start" and num_started < min(number, num_left + capacity):
            started.append(copies.start(message(num_started)))
            num_started += 1
        elif action == "arrive" and started:
            copies.arrive()
            held.append(started.pop(0))
            copies.gpu.work_on(held[-1], read)
            num_arrived += 1
        elif action == "leave" and num_left < num_arrived:
            del held[: len(held) - (num_arrived - num_left)]
            copies.leave()
            num_left += 1
        elif action == "let go":
            del held[: len(held) - (num_arrived - num_left)]
        elif action == "device":
            copies.gpu.step()
    copies.gpu.finish()
    return read


def twice(number: int) -> list[float]:
    return [float(n) for n in range(number) for _ in range(2)]


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(0, 2**32))
def test_every_message_is_whole_and_memory_bounded_in_any_order(capacity: int, seed: int) -> None:
    gpu = Gpu(random.Random(seed))
    copies = QueuedCopies(capacity, gpu)
    assert pass_messages(copies, capacity, 12, seed) == twice(12)
    assert gpu.most_pinned <= capacity
    assert len(gpu.memory) <= capacity + 1  # the receiver may hold on to one that has left


class Forgetful(QueuedCopies):
    """Leaves out one of the orders that the test above asks for."""

    def __init__(self, missing: str, gpu: Gpu) -> None:
        super().__init__(3, gpu)
        self._keeps = missing != "kept"
        for place in self._places:
            if missing == "bounded":
                place.copied.synchronize = lambda: None  # type: ignore[method-assign]
            elif missing != "kept":
                getattr(place, missing).wait = lambda stream: None

    def start(self, message: Message) -> Message:
        started = super().start(message)
        for place in self._places if not self._keeps else ():
            place.message = None
        return started


@pytest.mark.parametrize("missing", ["copied", "freed", "kept", "bounded"])
def test_without_one_of_the_orders_it_goes_wrong(missing: str) -> None:
    """The test above would notice."""
    wrong = 0
    for seed in range(50):
        gpu = Gpu(random.Random(seed))
        read = pass_messages(Forgetful(missing, gpu), 3, 12, seed)
        wrong += read != twice(12) or gpu.most_pinned > 3
    assert wrong


def test_the_next_copy_is_made_beside_the_work() -> None:
    """With room for two, the second message is there before the work on the first ends."""
    gpu = Gpu(random.Random(0))
    copies, read = QueuedCopies(2, gpu), list[float]()
    first = copies.start(message(0))
    copies.arrive()
    gpu.work_on(first, read)
    second = copies.start(message(1))
    while gpu.side.can_go_on():
        gpu.side.go_on()
    assert second.features.eq(1).all()
    assert not read
    gpu.finish()
    assert read == twice(1)


def test_a_thread_makes_messages_and_queues_their_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prefetcher does what the orders above ask for, and releases in their order."""
    gpu, lock = Gpu(random.Random(0)), threading.RLock()
    step = gpu.step

    def step_alone() -> bool:
        with lock:
            return step()

    monkeypatch.setattr(gpu, "step", step_alone)
    copies, threads, read = QueuedCopies(2, gpu), set[str](), list[float]()

    def start(sent: Message) -> Message:
        threads.add(threading.current_thread().name)
        return QueuedCopies.start(copies, sent)

    monkeypatch.setattr(copies, "start", start)
    monkeypatch.setattr(CopiesAhead, "to", lambda device, capacity: copies)
    inbox = Prefetcher(map(message, range(40)), 2, torch.device("cuda", 0))
    for number in range(40):
        received = inbox.recv(5)
        assert received.sequence == number
        with lock:
            gpu.work_on(received, read)
        inbox.release(received)
    inbox.close()
    gpu.finish()
    assert read == twice(40)
    assert threads == {"ppll-prefetch"}


def test_the_thread_pins_and_copies_on_the_side_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands for a GPU."""
    calls: list[object] = []
    gpu, copied = torch.device("cuda", 1), Message.on

    def copy(self: Message, device: torch.device, *, waits: bool = True) -> Message:
        calls.append(("copy", device, waits))
        return copied(self, torch.device("meta"))

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: calls.append(device) or "side")
    monkeypatch.setattr(torch.cuda, "Event", lambda blocking: Event(lambda: False))
    monkeypatch.setattr(torch.cuda, "stream", lambda side: nullcontext(calls.append(side)))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: calls.append("pin") or tensor)
    monkeypatch.setattr(Message, "on", copy)
    assert CopiesAhead.to(gpu, 1)._copy(message(0)).features.device.type == "meta"
    assert calls == [gpu, "side", "pin", ("copy", gpu, False)]


def test_marks_travel_as_batches_do() -> None:
    gpu = Gpu(random.Random(0))

    class Unchanged(QueuedCopies):
        def _copy(self, message: Message) -> Message:
            return message.on(PROCESSOR)

    copies = Unchanged(1, gpu)
    for number in range(3):
        mark = Message(kind=Kind.EPOCH_END, sequence=number, step=1)
        assert copies.start(mark) is mark
        copies.arrive()
        copies.leave()
    gpu.finish()


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name == "ppll-prefetch":
            thread.join(5)
            assert not thread.is_alive()
