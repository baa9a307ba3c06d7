"""The sending end of a channel between hosts; ``process_group`` says how it works."""

from __future__ import annotations

from collections import deque
from typing import Final

import torch
from torch.distributed import Store  # type: ignore[attr-defined]

from ppll.channels.base import SendEnd, SlotLayout
from ppll.channels.group_link import (
    CLOSING,
    CREDIT,
    END,
    HEADER,
    LARGE,
    LEAVE_S,
    NOTICE_S,
    SENDER,
)
from ppll.channels.header import HEADER_BYTES, header_bytes, pack_header
from ppll.channels.layout import Layout, layout_of
from ppll.channels.memory import PROCESSOR, Slots
from ppll.channels.nccl_link import links_to
from ppll.channels.nccl_slots import NcclSendSlots
from ppll.channels.network_slots import GlooSendSlots, SendSlots
from ppll.errors import ChannelClosed, TransportError
from ppll.message import Message

__all__ = ["GroupSendEnd"]

_FAILING_PATIENCE_S: Final = 0.5
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
        device: Where messages come from.

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
        device: torch.device = PROCESSOR,
    ) -> None:
        super().__init__(capacity)
        self._headers = [torch.zeros(HEADER_BYTES, dtype=torch.uint8) for _ in range(capacity)]
        self._large: deque[Slots] = deque(maxlen=capacity)
        self._packed = bytearray(HEADER_BYTES)
        self._num_sent = self._num_slots = self._num_credits = self._num_heard = 0
        self._open = True
        self._group, nccl = links_to(store, name, SENDER, address, timeout_s, device)
        self._slots: SendSlots = (
            NcclSendSlots(nccl, layout.slot_bytes, capacity)
            if nccl is not None
            else GlooSendSlots(self._group, layout.slot_bytes, capacity)
        )
        self._words = [torch.zeros(1, dtype=torch.uint8) for _ in range(capacity + 1)]
        self._posted = deque(self._group.post(word, CREDIT) for word in self._words)
        self._group.listen(self._hear, self._slots.give_up)

    def _hear(self) -> None:
        """Wait for a credit, in the group's thread."""
        self._posted.popleft().wait()
        word = self._words[self._num_heard % len(self._words)]
        self._num_heard += 1
        if word.item() == CLOSING:
            self._group.is_gone = True  # Who hears the answer may count on it.
            self._say_end()
            raise ChannelClosed("the receiver closes.")
        self._posted.append(self._group.post(word, CREDIT))
        self._num_credits += 1
        self._group.changed.set()

    def _say_end(self) -> None:
        self._group.send(torch.tensor(list(END), dtype=torch.uint8), HEADER)

    @property
    def device(self) -> torch.device:
        """Where a message's tensors are copied from; others are brought there first."""
        return self._slots.source

    def ready(self) -> bool:
        """Whether the next ``send`` will not wait."""
        if not self._open:
            raise ChannelClosed(_THIS_CLOSED)
        if self._group.is_gone:
            raise self._group.gone("receiver")
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
            self._group.send(header, HEADER)
            if is_large:
                self._send_large(message.on(PROCESSOR), layout)
            elif layout.extent_bytes:
                self._slots.send(self._num_slots % self.capacity, layout, message.tensors)
                self._num_slots += 1
        except (ChannelClosed, TransportError) as error:
            if isinstance(error, TransportError) and not self._group.is_gone_within(NOTICE_S):
                raise
            raise self._group.gone("receiver") from None
        self.statistics.transport_bytes += len(header) + layout.extent_bytes

    def _send_large(self, message: Message, layout: Layout) -> None:
        self._large.append(Slots.reserve(layout.extent_bytes, 1))
        self._large[-1].write(0, layout, message.tensors)
        self._group.send(self._large[-1].raw(0), LARGE)
        self.statistics.oversized += 1

    def flush(self) -> None:
        """Wait until all tensors have been copied; where a GPU copies, its stream waits instead."""
        self._slots.flush()

    @property
    def fill(self) -> int:
        """Messages that are sent and not yet released."""
        return self._num_sent - self._num_credits

    def close(self, patience_s: float = LEAVE_S) -> None:
        """Send nothing more; wait a while until the receiver's end has what was sent."""
        if self._open:
            self._open = False
            self._group.leave(self._say_end, patience_s)
            self._slots.close()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # Who fails must say so soon.
        self.close(_FAILING_PATIENCE_S if kind is not None else LEAVE_S)
