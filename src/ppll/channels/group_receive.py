"""The receiving end of a channel between hosts; ``process_group`` says how it works."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from datetime import timedelta
from functools import partial
from typing import Final, TypeAlias

import torch
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]

from ppll.channels.base import ReceiveEnd, SlotLayout
from ppll.channels.group_link import (
    CLOSING,
    CREDIT,
    END,
    HEADER,
    LARGE,
    NOTICE_S,
    RECEIVER,
    RELEASED,
)
from ppll.channels.header import HEADER_BYTES, Header, unpack_header
from ppll.channels.memory import PROCESSOR, Slots
from ppll.channels.nccl_link import links_to
from ppll.channels.nccl_slots import NcclReceiveSlots
from ppll.channels.network_slots import GlooReceiveSlots, ReceiveSlots
from ppll.errors import ChannelClosed, ProtocolError, TransportError
from ppll.message import Message

__all__ = ["GroupReceiveEnd"]

_THIS_CLOSED: Final = "this end of the channel is closed."

_Place: TypeAlias = tuple[ReceiveSlots | Slots, int]
"""Where a message's tensors lie; the index is -1 where they have no bytes."""


class GroupReceiveEnd(ReceiveEnd):
    """The end that messages leave; arguments and errors are those of ``GroupSendEnd``.

    Args:
        store: What both ends can reach.
        name: Of the channel.
        layout: What a slot must hold.
        capacity: Slots.
        address: Of this host, as the other one reaches it.
        timeout_s: Seconds to wait for the other end to come.
        device: Where messages shall arrive; larger ones than announced come in the host's memory.
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
        device: torch.device = PROCESSOR,
        poison: bool = False,
    ) -> None:
        super().__init__(capacity)
        self._poison = poison
        self._arrived: deque[tuple[Header, _Place]] = deque()
        self._places: deque[_Place] = deque()  # of the messages in use, oldest first
        self._num_heard = self._num_filled = self._num_announced = self._num_released = 0
        self._open = True
        self._has_ended = False
        self._group, nccl = links_to(store, name, RECEIVER, address, timeout_s, device)
        self._slots: ReceiveSlots = (
            NcclReceiveSlots(nccl, layout.slot_bytes, capacity, self._group.fail)
            if nccl is not None
            else GlooReceiveSlots(self._group, layout.slot_bytes, capacity)
        )
        # One more for the end, which needs no credit.
        self._headers = [torch.zeros(HEADER_BYTES, dtype=torch.uint8) for _ in range(capacity + 1)]
        self._posted = deque(self._group.post(header, HEADER) for header in self._headers)
        self._group.listen(self._hear, self._slots.give_up)

    def _hear(self) -> None:
        """Wait for a message, in the group's thread."""
        self._posted.popleft().wait()
        buffer = self._headers[self._num_heard % len(self._headers)]
        self._num_heard += 1
        packed = buffer.numpy().tobytes()
        buffer.zero_()
        if packed.startswith(END):
            self._hear_end(buffer)
            return
        self._posted.append(self._group.post(buffer, HEADER))
        header = unpack_header(memoryview(packed))
        self._check(header)
        self._num_announced += 1
        self._expect(header)

    def _hear_end(self, buffer: Tensor) -> None:
        """The sender closes: answer when all has come, and wait for it to have heard that."""
        if self._has_ended or not self._open:
            raise ChannelClosed("the sender closes.")
        self._has_ended = True
        self._posted.append(self._group.post(buffer, HEADER))
        self._slots.pass_on(self._answer_end)

    def _answer_end(self) -> None:
        self._group.is_gone = True  # Who hears the answer may count on it.
        self._group.changed.set()
        with contextlib.suppress(ChannelClosed):
            self._say(CLOSING)

    def _check(self, header: Header) -> None:
        extent, slot_bytes = header.layout.extent_bytes, self._slots.slot_bytes
        if header.own_memory == (extent <= slot_bytes):
            raise ProtocolError(
                f"a message of {extent} bytes says that it is {'' if header.own_memory else 'not '}"
                f"larger than a slot, which has {slot_bytes} bytes."
            )
        if self._num_announced - self._num_released >= self.capacity:
            raise ProtocolError(f"more messages came than the {self.capacity} slots hold.")

    def _expect(self, header: Header) -> None:
        """Let a message arrive once its tensors are there."""
        if header.own_memory:
            memory = Slots.reserve(header.layout.extent_bytes, 1)
            self._group.post(memory.raw(0), LARGE).wait()
            self.statistics.oversized += 1
            self._slots.pass_on(partial(self._arrive, header, (memory, 0)))
        elif header.layout.extent_bytes:
            index = self._num_filled % self.capacity
            self._num_filled += 1
            then = partial(self._arrive, header, (self._slots, index))
            try:
                self._slots.expect(index, header.layout.extent_bytes, then)
            except TransportError:
                if self._is_sender_gone():
                    raise ChannelClosed("the sender is gone.") from None
                raise
        else:
            self._slots.pass_on(partial(self._arrive, header, (self._slots, -1)))

    def _is_sender_gone(self) -> bool:
        """Whether the connection breaks soon; this end cannot go on in any case."""
        deadline = time.monotonic() + NOTICE_S
        try:
            for posted in self._posted:  # some headers may have come before that
                # Gloo rounds down: a wait that times out must end after the deadline.
                left_s = max(0.0, deadline - time.monotonic())
                posted.wait(timedelta(seconds=left_s + 0.01))
        except RuntimeError:
            return time.monotonic() < deadline
        return False

    def _arrive(self, header: Header, place: _Place) -> None:
        self._arrived.append((header, place))
        self._group.changed.set()

    def _say(self, word: int) -> None:
        self._group.send(torch.full((1,), word, dtype=torch.uint8), CREDIT)

    def ready(self) -> bool:
        """Whether the next ``recv`` will not wait."""
        if not self._open:
            raise ChannelClosed(_THIS_CLOSED)
        is_gone = self._group.is_gone  # asked first: what came before it is there by now
        if not self._arrived and self._group.error is not None:
            raise self._group.error
        if not self._arrived and is_gone:
            raise self._group.gone("sender")
        return bool(self._arrived)

    def _wait(self, timeout_s: float | None) -> None:
        self._group.wait_for_change(timeout_s)

    def _take(self) -> Message:
        header, place = self._arrived.popleft()
        self._places.append(place)
        slots, index = place
        return header.message(slots.read(index, header.layout))

    def _give_back(self) -> None:
        if not self._open:
            return
        slots, index = self._places.popleft()
        if self._poison and index >= 0:
            slots.poison(index)
        self._num_released += 1
        with contextlib.suppress(ChannelClosed):  # the sender is gone and needs no credit
            if slots is self._slots and index >= 0:
                self._slots.give_back(index)
            self._say(RELEASED)

    @property
    def fill(self) -> int:
        """Messages that have come, or are on their way, and are not yet released."""
        return self._num_announced - self._num_released if self._open else 0

    def close(self) -> None:
        """Receive nothing more; tensors that are still in use stay valid."""
        if self._open:
            self._open = False
            self._group.leave(lambda: self._say(CLOSING))
            self._slots.close()
            self._places.clear()
