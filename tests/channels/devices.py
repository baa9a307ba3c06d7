"""A GPU made of queues: what streams and events promise, in any order that they allow."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ppll.channels.device_slots import ReceiverSlots, Ring, SenderSlots

PROCESSOR = torch.device("cpu")


class Stream:
    """Work in order; each piece runs once its condition holds."""

    def __init__(self) -> None:
        self.queue: deque[tuple[Callable[[], bool], Callable[[], None]]] = deque()

    def add(self, work: Callable[[], None]) -> None:
        self.queue.append((lambda: True, work))

    def add_wait(self, condition: Callable[[], bool]) -> None:
        self.queue.append((condition, lambda: None))

    def can_go_on(self) -> bool:
        return bool(self.queue) and self.queue[0][0]()

    def go_on(self) -> None:
        self.queue.popleft()[1]()


class Event:
    """What was recorded last counts, for whoever waits from then on."""

    def __init__(self) -> None:
        self.num_recorded = self.num_over = 0

    def record(self, stream: Stream) -> None:
        self.num_recorded += 1
        number = self.num_recorded
        stream.add(lambda: setattr(self, "num_over", number))

    def wait(self, stream: Stream) -> None:
        number = self.num_recorded
        stream.add_wait(lambda: self.num_over >= number)

    def query(self) -> bool:
        return self.num_over == self.num_recorded


class Memory:
    """Memory of such a GPU, which is the processor's."""

    device = PROCESSOR

    def __init__(self, num_bytes: int) -> None:
        self._bytes = bytearray(num_bytes)
        self.is_abandoned = False

    def tensor(self, offset: int, num_bytes: int) -> Tensor:
        return torch.frombuffer(self._bytes, dtype=torch.uint8, offset=offset, count=num_bytes)

    def abandon(self) -> None:
        self.is_abandoned = True


class SideStream:
    """``device_slots.SideStream`` of such a GPU."""

    def __init__(self, caller: Stream) -> None:
        self.stream, self._caller = Stream(), caller

    @contextmanager
    def behind_caller(self) -> Iterator[None]:
        self._order(self._caller, self.stream)
        yield

    def hold_caller(self) -> None:
        self._order(self.stream, self._caller)

    def is_over(self) -> bool:
        return not self.stream.queue

    def _order(self, first: Stream, second: Stream) -> None:
        event = Event()
        event.record(first)
        event.wait(second)


class QueuedSenderSlots(SenderSlots):
    """Copies when the side stream comes to it."""

    def _copy(self, target: Tensor, source: Tensor) -> None:
        self._side.stream.add(lambda: super(QueuedSenderSlots, self)._copy(target, source))


class Device:
    """One GPU with the slots of one channel, both ends' streams, and a will of its own."""

    def __init__(self, slot_bytes: int, num_slots: int) -> None:
        self.memory = Memory(slot_bytes * num_slots)
        self.sending, self.receiving = Stream(), Stream()
        self.side = SideStream(self.sending)
        events = [Event() for _ in range(2 * num_slots)]
        ring = Ring(self.memory, events[:num_slots], events[num_slots:])
        self.sender = QueuedSenderSlots(ring, slot_bytes, self.side, PROCESSOR)
        self.receiver = ReceiverSlots(ring, slot_bytes, lambda: self.receiving)

    def step(self, chance: random.Random) -> bool:
        """Do some piece of work that can be done; whether there was one."""
        streams = (self.sending, self.side.stream, self.receiving)
        able = [stream for stream in streams if stream.can_go_on()]
        if able:
            chance.choice(able).go_on()
        return bool(able)

    def finish(self, chance: random.Random) -> None:
        """Do all work that is left."""
        while self.step(chance):
            pass
        left = [len(s.queue) for s in (self.sending, self.side.stream, self.receiving)]
        assert not any(left), f"stuck with {left} pieces of work"
