"""A channel between hosts: ``torch.distributed`` point to point, one group for each directed edge.

::

    sender                                            receiver
      copy the tensors into a slot                      a receive is posted for every slot
      header, then the slot's bytes ────── gloo ──────▶ check it, receive
      may send again                ◀───── gloo ─────── release: one byte, a credit

Both ends have ``capacity`` slots, so the sender copies once and goes on while the network works. A
message is sent only when there is a credit, so every send finds its receive posted. Marks without
tensors are a header alone. What is larger than announced is received when its header has come.

Whoever closes says so, and the other answers, so that nothing that was sent is lost when a
connection ends.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Final

import torch
from torch.distributed import Store  # type: ignore[attr-defined]

from ppll.channels.base import ReceiveEnd, SendEnd, SlotLayout
from ppll.channels.group_link import RECEIVER, SENDER, GroupLink
from ppll.channels.header import (
    HEADER_BYTES,
    Header,
    header_bytes,
    pack_header,
    unpack_header,
)
from ppll.channels.layout import layout_of
from ppll.channels.memory import Slots
from ppll.errors import ChannelClosed, ProtocolError
from ppll.message import Message

__all__ = ["GroupReceiveEnd", "GroupSendEnd"]

_HEADER, _SLOT, _LARGE, _CREDIT = range(4)  # tags
_RELEASED, _CLOSING = 1, 2  # what a credit's byte says
_END: Final = b"PEND"
"""In the place of a header: the sender closes."""
_THIS_CLOSED: Final = "this end of the channel is closed."


class GroupSendEnd(SendEnd):
    """The end that messages enter.

    Args:
        store: What both ends can reach.
        name: Of the channel, the same at both ends.
        layout: What a slot must hold; the same at both ends.
        capacity: Slots of each end, the same at both.
        address: Of this host, as the other one reaches it; gloo's choice without.
        timeout_s: Seconds to wait for the other end to come.

    Raises:
        ChannelTimeout: It did not come in time.
        ChannelError: The two cannot connect, or memory is short.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        layout: SlotLayout,
        capacity: int,
        *,
        address: str | None = None,
        timeout_s: float,
    ) -> None:
        super().__init__(capacity)
        self._slots = Slots.reserve(layout.slot_bytes, capacity)
        self._headers = [torch.zeros(HEADER_BYTES, dtype=torch.uint8) for _ in range(capacity)]
        self._large: deque[Slots] = deque(maxlen=capacity)
        self._packed = bytearray(HEADER_BYTES)
        self._num_sent = self._num_slots = self._num_credits = self._num_heard = 0
        self._open = True
        self._group = GroupLink(store, name, SENDER, address, timeout_s)
        self._words = [torch.zeros(1, dtype=torch.uint8) for _ in range(capacity + 1)]
        self._posted = deque(self._group.post(word, _CREDIT) for word in self._words)
        self._group.listen(self._hear)

    def _hear(self) -> None:
        """Wait for a credit, in the group's thread."""
        self._posted.popleft().wait()
        word = self._words[self._num_heard % len(self._words)]
        self._num_heard += 1
        if word.item() == _CLOSING:
            self._group.is_gone = True  # Who hears the answer may count on it.
            self._say_end()
            raise ChannelClosed("the receiver closes.")
        self._posted.append(self._group.post(word, _CREDIT))
        self._num_credits += 1
        self._group.changed.set()

    def _say_end(self) -> None:
        self._group.send(torch.tensor(list(_END), dtype=torch.uint8), _HEADER)

    def ready(self) -> bool:
        """Whether the next ``send`` will not wait."""
        if not self._open:
            raise ChannelClosed(_THIS_CLOSED)
        if self._group.is_gone:
            raise ChannelClosed("the receiver is gone.")
        return self.fill < self.capacity

    def _wait(self, timeout_s: float | None) -> None:
        self._group.wait_for_change(timeout_s)

    def _put(self, message: Message) -> None:
        layout = layout_of(message.tensors)
        is_large = layout.extent_bytes > self._slots.slot_bytes
        pack_header(self._packed, message, layout, own_memory=is_large)
        header = self._headers[self._num_sent % self.capacity][: header_bytes(layout)]
        header.numpy()[:] = self._packed[: len(header)]
        self._num_sent += 1
        try:
            self._group.send(header, _HEADER)
            self.statistics.transport_bytes += len(header)
            if is_large:
                self._large.append(Slots.reserve(layout.extent_bytes, 1))
                self._large[-1].write(0, layout, message.tensors)
                self._group.send(self._large[-1].raw(0), _LARGE)
                self.statistics.oversized += 1
            elif layout.extent_bytes:
                index = self._num_slots % self.capacity
                self._slots.write(index, layout, message.tensors)
                self._group.send(self._slots.raw(index)[: layout.extent_bytes], _SLOT)
                self._num_slots += 1
        except ChannelClosed:
            raise ChannelClosed("the receiver is gone.") from None
        self.statistics.transport_bytes += layout.extent_bytes

    @property
    def fill(self) -> int:
        """Messages that are sent and not yet released."""
        return self._num_sent - self._num_credits

    def close(self) -> None:
        """Send nothing more; wait a while until the receiver's end has what was sent."""
        if self._open:
            self._open = False
            self._group.leave(self._say_end)


class GroupReceiveEnd(ReceiveEnd):
    """The end that messages leave; arguments and errors are those of ``GroupSendEnd``.

    Args:
        store: What both ends can reach.
        name: Of the channel.
        layout: What a slot must hold.
        capacity: Slots.
        address: Of this host, as the other one reaches it.
        timeout_s: Seconds to wait for the other end to come.
        poison: Set every bit of a slot before it is given back (NaN for floats), so that a test
            catches whoever keeps a view of it.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        layout: SlotLayout,
        capacity: int,
        *,
        address: str | None = None,
        timeout_s: float,
        poison: bool = False,
    ) -> None:
        super().__init__(capacity)
        self._slots = Slots.reserve(layout.slot_bytes, capacity)
        self._poison = poison
        self._arrived: deque[tuple[Header, Slots, int]] = deque()
        self._places: deque[tuple[Slots, int]] = deque()  # of the messages in use, oldest first
        self._num_heard = self._num_filled = 0
        self._open = True
        self._group = GroupLink(store, name, RECEIVER, address, timeout_s)
        # One more for the end, which needs no credit.
        self._headers = [torch.zeros(HEADER_BYTES, dtype=torch.uint8) for _ in range(capacity + 1)]
        self._posted = deque(self._group.post(header, _HEADER) for header in self._headers)
        self._filling = deque(
            self._group.post(self._slots.raw(index), _SLOT) for index in range(capacity)
        )
        self._group.listen(self._hear)

    def _hear(self) -> None:
        """Wait for a message, in the group's thread."""
        self._posted.popleft().wait()
        buffer = self._headers[self._num_heard % len(self._headers)]
        self._num_heard += 1
        packed = buffer.numpy().tobytes()
        if packed.startswith(_END):
            self._group.is_gone = True  # Who hears the answer may count on it.
            self._say(_CLOSING)
            raise ChannelClosed("the sender closes.")
        buffer.zero_()
        self._posted.append(self._group.post(buffer, _HEADER))
        header = unpack_header(memoryview(packed))
        self._check(header)
        self._arrived.append((header, *self._tensors_of(header)))
        self._group.changed.set()

    def _check(self, header: Header) -> None:
        extent, slot_bytes = header.layout.extent_bytes, self._slots.slot_bytes
        if header.own_memory == (extent <= slot_bytes):
            raise ProtocolError(
                f"a message of {extent} bytes says that it is {'' if header.own_memory else 'not '}"
                f"larger than a slot, which has {slot_bytes} bytes."
            )
        if len(self._arrived) + len(self._places) >= self.capacity:
            raise ProtocolError(f"more messages came than the {self.capacity} slots hold.")

    def _tensors_of(self, header: Header) -> tuple[Slots, int]:
        """Wait for a message's tensors; where they lie."""
        if header.own_memory:
            memory = Slots.reserve(header.layout.extent_bytes, 1)
            self._group.post(memory.raw(0), _LARGE).wait()
            self.statistics.oversized += 1
            return memory, 0
        if not header.layout.extent_bytes:
            return self._slots, -1
        self._filling.popleft().wait()
        index = self._num_filled % self.capacity
        self._num_filled += 1
        return self._slots, index

    def _say(self, word: int) -> None:
        self._group.send(torch.full((1,), word, dtype=torch.uint8), _CREDIT)

    def ready(self) -> bool:
        """Whether the next ``recv`` will not wait."""
        if not self._open:
            raise ChannelClosed(_THIS_CLOSED)
        is_gone = self._group.is_gone  # asked first: what came before it is there by now
        if not self._arrived and self._group.error is not None:
            raise self._group.error
        if not self._arrived and is_gone:
            raise ChannelClosed("the sender is gone.")
        return bool(self._arrived)

    def _wait(self, timeout_s: float | None) -> None:
        self._group.wait_for_change(timeout_s)

    def _take(self) -> Message:
        header, slots, index = self._arrived.popleft()
        self._places.append((slots, index))
        return header.message(slots.read(index, header.layout))

    def _give_back(self) -> None:
        if not self._open:
            return
        slots, index = self._places.popleft()
        if self._poison and index >= 0:
            slots.poison(index)
        with contextlib.suppress(ChannelClosed):  # the sender is gone and needs no credit
            if slots is self._slots and index >= 0:
                self._filling.append(self._group.post(slots.raw(index), _SLOT))
            self._say(_RELEASED)

    @property
    def fill(self) -> int:
        """Messages that have come and are not yet released."""
        return len(self._arrived) + len(self._places) if self._open else 0

    def close(self) -> None:
        """Receive nothing more; tensors that are still in use stay valid."""
        if self._open:
            self._open = False
            self._group.leave(lambda: self._say(_CLOSING))
            self._places.clear()
