"""The receiving end of a channel between processes of one host; ``shared`` says how it works."""

from __future__ import annotations

import contextlib
from collections import deque
from pathlib import Path
from typing import Final, Self

import torch

from ppll.channels import sockets
from ppll.channels.base import ReceiveEnd, SlotLayout
from ppll.channels.greeting import MAX_CAPACITY, Offer
from ppll.channels.header import HEADER_BYTES, Header, unpack_header
from ppll.channels.memory import PROCESSOR, Slots, SlotTensors
from ppll.channels.sockets import FrameReader
from ppll.errors import ChannelClosed, ChannelError, ProtocolError
from ppll.message import Message

__all__ = ["SharedReceiveEnd"]

_CREDIT: Final = b"\1"
_THIS_CLOSED: Final = "this end of the channel is closed."


class SharedReceiveEnd(ReceiveEnd):
    """The end that messages leave; ``listen`` makes it and ``accept`` completes it."""

    def __init__(
        self,
        path: Path,
        slot_bytes: int,
        capacity: int,
        secret: bytes,
        *,
        poison: bool,
        device: torch.device,
    ) -> None:
        super().__init__(capacity)
        self._secret = secret
        self._poison = poison
        self._device = device
        self._reader: FrameReader | None = None
        self._places: deque[tuple[SlotTensors, int]] = (
            deque()
        )  # of the messages in use, oldest first
        self._num_received = 0
        self._open = True
        with contextlib.ExitStack() as undo:
            self._listener = sockets.listen(path)
            undo.callback(path.unlink, missing_ok=True)
            undo.callback(self._listener.close)
            self._offer = Offer(slot_bytes, capacity, device)
            undo.callback(self._offer.close)
            self._slots = self._offer.slots
            self._until_accepted = undo.pop_all()

    @classmethod
    def listen(
        cls,
        path: Path,
        layout: SlotLayout,
        capacity: int,
        secret: bytes,
        *,
        poison: bool = False,
        device: torch.device = PROCESSOR,
    ) -> Self:
        """Reserve the slots and let the sender connect; ``accept`` then completes the channel.

        Args:
            path: Where to listen: a new name in a folder that only this user may enter.
            layout: What a slot must hold; larger messages come through all the same, slower.
            capacity: Slots, 1 to ``MAX_CAPACITY``.
            secret: Bytes that all processes of the run know.
            poison: Set every bit of a slot before it is given back (NaN for floats), so that a
                test catches whoever keeps a view of it.
            device: Where messages arrive; on a GPU the slots lie in its memory if they can.

        Raises:
            ChannelError: The capacity is out of range, memory is short, or the path is no good.
        """
        if not 1 <= capacity <= MAX_CAPACITY:
            raise ChannelError(f"a channel has 1 to {MAX_CAPACITY} slots, not {capacity}.")
        return cls(path, layout.slot_bytes, capacity, secret, poison=poison, device=device)

    def accept(self, timeout_s: float) -> None:
        """Wait for the sender and hand it the slots; the path is gone afterwards.

        Args:
            timeout_s: Seconds to wait; after a time-out ``accept`` may be called again.

        Raises:
            ChannelTimeout: No sender with the secret came in time.
            ChannelClosed: It came and went.
        """
        peer = sockets.accept(self._listener, self._secret, timeout_s)
        self._reader = FrameReader(peer, HEADER_BYTES)
        self._offer.send(peer)
        self._until_accepted.close()

    def ready(self) -> bool:
        """Whether the next ``recv`` will not wait."""
        if not self._open:
            raise ChannelClosed(_THIS_CLOSED)
        if self._reader is None:
            raise ChannelError("accept the sender before receiving.")
        return self._reader.poll()

    def _wait(self, timeout_s: float | None) -> None:
        assert self._reader is not None  # ready has said so
        sockets.wait_readable(self._reader.socket, timeout_s)

    def _take(self) -> Message:
        assert self._reader is not None  # ready has said so
        frame, fds = self._reader.take()
        try:
            header = unpack_header(frame)
            slots, index = self._place(header, fds)
        finally:
            sockets.close_all(fds)
        self._num_received += 1
        self.statistics.oversized += header.own_memory
        self._places.append((slots, index))
        return header.message(slots.read(index, header.layout)).on(self._device)

    def _place(self, header: Header, fds: list[int]) -> tuple[SlotTensors, int]:
        """The slot that a message lies in, after checking that it does."""
        extent, slot_bytes = header.layout.extent_bytes, self._slots.slot_bytes
        announced = int(header.own_memory or header.new_slots)
        if len(fds) != announced:
            raise ProtocolError(
                f"{len(fds)} descriptors came with a message, expected {announced}."
            )
        if header.own_memory == (extent <= slot_bytes):
            where = "memory of its own" if header.own_memory else "a slot"
            raise ProtocolError(
                f"a message of {extent} bytes lies in {where}; slots have {slot_bytes} bytes."
            )
        if len(self._places) >= self.capacity:
            raise ProtocolError(f"more messages came than the {self.capacity} slots hold.")
        if header.new_slots:
            self._move_to(fds[0])
        if not header.own_memory:
            return self._slots, self._num_received % self.capacity
        return Slots(fds[0], extent, 1), 0

    def _move_to(self, memory: int) -> None:
        """Take slots in the host's memory, since the sender cannot reach the GPU's."""
        if isinstance(self._slots, Slots):
            raise ProtocolError("the sender sent new slots, but has reached the old ones.")
        moved = Slots(memory, self._slots.slot_bytes, self.capacity, pinned=True)
        self._slots.close()
        self._slots = moved

    def _give_back(self) -> None:
        if not self._open:
            return
        assert self._reader is not None  # a message was received
        slots, index = self._places.popleft()
        if self._poison:
            slots.poison(index)
        slots.give_back(index)
        with contextlib.suppress(ConnectionError):  # the sender is gone and needs no credit
            self._reader.socket.send(_CREDIT)

    @property
    def fill(self) -> int:
        """Messages that are sent and not yet released."""
        if self._reader is None or not self._open:
            return 0
        return len(self._places) + self._reader.available_bytes // HEADER_BYTES

    def close(self) -> None:
        """Receive nothing more; tensors that are still in use stay valid."""
        if not self._open:
            return
        self._open = False
        self._until_accepted.close()
        self._places.clear()
        if not (self._slots.is_idle() and self._sender_is_gone()):
            self._slots.abandon()
        self._slots.close()
        if self._reader is not None:
            self._reader.close()

    def _sender_is_gone(self) -> bool:
        """Whether nobody else uses the slots any more."""
        try:
            while self._reader is not None and self._reader.poll():
                sockets.close_all(self._reader.take()[1])
        except ChannelClosed:
            return True
        return self._reader is None
