"""A GPU made of queues: what streams and events promise, in any order that they allow."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ppll.channels.device_slots import ReceiverSlots, Ring, SenderSlots
from ppll.channels.nccl_slots import NcclReceiveSlots, NcclSendSlots

PROCESSOR = torch.device("cpu")


class Stream:
    """Work in order; each piece runs once its condition holds."""

    def __init__(self) -> None:
        self.queue: deque[tuple[Callable[[], bool], Callable[[], None]]] = deque()
        self.pace = 1.0

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


class _Work:
    """Streams that do a piece of work now and then."""

    streams: tuple[Stream, ...]

    def step(self, chance: random.Random) -> bool:
        """Do some piece of work that can be done; whether there was one."""
        able = [stream for stream in self.streams if stream.can_go_on()]
        if able:
            chance.choices(able, [stream.pace for stream in able])[0].go_on()
        return bool(able)

    def finish(self, chance: random.Random) -> None:
        """Do all work that is left."""
        while self.step(chance):
            pass
        left = [len(stream.queue) for stream in self.streams]
        assert not any(left), f"stuck with {left} pieces of work"


class Device(_Work):
    """One GPU with the slots of one channel, both ends' streams, and a will of its own."""

    def __init__(self, slot_bytes: int, num_slots: int) -> None:
        self.memory = Memory(slot_bytes * num_slots)
        self.sending, self.receiving = Stream(), Stream()
        self.side = SideStream(self.sending)
        events = [Event() for _ in range(2 * num_slots)]
        ring = Ring(self.memory, events[:num_slots], events[num_slots:])
        self.sender = QueuedSenderSlots(ring, slot_bytes, self.side, PROCESSOR)
        self.receiver = ReceiverSlots(ring, slot_bytes, lambda: self.receiving)
        self.streams = (self.sending, self.side.stream, self.receiving)


class _Sent:
    """A send, for whichever stream of its GPU waits for it."""

    def __init__(self, link: NcclLink, number: int) -> None:
        self._link, self._number = link, number

    def wait(self) -> None:
        link, number = self._link, self._number
        link.side.stream.add_wait(lambda: link.pair.num_taken > number)


class NcclLink:
    """``nccl_link.NcclLink`` of one of two such GPUs: a send is over when it was received."""

    device = PROCESSOR

    def __init__(self, pair: Pair, caller: Stream) -> None:
        self.pair, self._caller = pair, caller
        self.side = SideStream(caller)
        self.own, self.stream = Stream(), Stream()  # NCCL's, and the one it is called on
        self._num_calls = 0

    def reserve(self, slot_bytes: int, num_slots: int) -> list[Tensor]:
        return [torch.zeros(slot_bytes, dtype=torch.uint8) for _ in range(num_slots)]

    def event(self) -> Event:
        return Event()

    def record(self, event: Event) -> None:
        event.record(self._caller)

    def _behind(self, stream: Stream) -> int:
        """Let NCCL's stream wait for what another has got so far; the number of the call."""
        reached = Event()
        reached.record(stream)
        reached.wait(self.own)
        self._num_calls += 1
        return self._num_calls - 1

    def send(self, content: Tensor) -> _Sent:
        number = self._behind(self.side.stream)
        self.own.add(lambda: self.pair.offered.append(content))
        self.own.add_wait(lambda: self.pair.num_taken > number)
        return _Sent(self, number)

    def receive(self, content: Tensor, freed: Event) -> Event:
        freed.wait(self.stream)
        number = self._behind(self.stream)
        self.own.add_wait(lambda: len(self.pair.offered) > number)
        self.own.add(lambda: self.pair.take(number, content))
        filled = Event()
        self.stream.add_wait(lambda: self.pair.num_taken > number)
        filled.record(self.stream)
        return filled

    def give_up(self) -> None:
        pass


class QueuedSendSlots(NcclSendSlots):
    """Copies when the side stream comes to it."""

    def _copy(self, target: Tensor, source: Tensor) -> None:
        stream = self._copies._side.stream
        stream.add(lambda: super(QueuedSendSlots, self)._copy(target, source))


class Pair(_Work):
    """Two GPUs of different hosts, a channel between them, and wills of their own."""

    def __init__(self, slot_bytes: int, num_slots: int) -> None:
        self.offered: list[Tensor] = []
        self.num_taken = 0
        self.sending, self.receiving = Stream(), Stream()
        self.one, self.other = NcclLink(self, self.sending), NcclLink(self, self.receiving)
        self.sender = QueuedSendSlots(self.one, slot_bytes, num_slots)
        self.receiver = NcclReceiveSlots(self.other, slot_bytes, num_slots, fail=raise_it)
        self.streams = (
            *(self.sending, self.one.side.stream, self.one.own),
            *(self.other.own, self.other.stream, self.receiving),
        )

    def take(self, number: int, target: Tensor) -> None:
        target.copy_(self.offered[number])
        self.num_taken += 1


def raise_it(error: Exception) -> None:
    raise error
