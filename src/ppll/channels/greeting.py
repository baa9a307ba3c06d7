"""What a receiver offers its sender at first: slots on its GPU, or in the host's memory."""

from __future__ import annotations

import logging
import os
import socket
import struct
from typing import Final, NamedTuple

import torch

from ppll.channels.cuda_runtime import Unshareable
from ppll.channels.device_slots import open_slots, reserve_slots
from ppll.channels.header import MAGIC, VERSION
from ppll.channels.memory import PROCESSOR, Slots, SlotTensors, reserve
from ppll.channels.sockets import FrameReader, close_all
from ppll.errors import ChannelClosed, ProtocolError
from ppll.message import DEVICE_ALIGNMENT

__all__ = ["MAX_CAPACITY", "Greeting", "Offer", "Taken"]

_log = logging.getLogger(__name__)

MAX_CAPACITY: Final = 64
"""So many headers always fit the socket's buffer: a send that has a credit never waits."""

_GREETING: Final = struct.Struct("<4sHHqq")
"""Magic, version, bytes of the export that follows (none: a descriptor comes), capacity, bytes of a
slot."""


class Offer:
    """A receiver's slots and what its sender is told of them.

    Args:
        slot_bytes: Size of a slot.
        capacity: How many there are.
        device: Where messages shall arrive.

    Raises:
        ChannelError: There is not so much memory.
    """

    def __init__(self, slot_bytes: int, capacity: int, device: torch.device) -> None:
        self.slots: SlotTensors
        self._fd, self._export = -1, b""
        if device != PROCESSOR:
            try:
                self.slots, self._export = reserve_slots(slot_bytes, capacity, device)
            except Unshareable as error:
                _log.warning("messages come through pinned memory of the host: %s", error)
        if not self._export:
            self._fd = reserve(slot_bytes * capacity)
            pinned = device != PROCESSOR
            self.slots = Slots(self._fd, slot_bytes, capacity, pinned=pinned)
        self._capacity = capacity

    def send(self, peer: socket.socket) -> None:
        """Make it.

        Raises:
            ChannelClosed: The sender is gone.
        """
        numbers = len(self._export), self._capacity, self.slots.slot_bytes
        greeting = _GREETING.pack(MAGIC, VERSION, *numbers) + self._export
        try:
            if self._export:
                peer.sendall(greeting)
            else:
                socket.send_fds(peer, [greeting], [self._fd])
        except ConnectionError:
            raise ChannelClosed("the sender is gone.") from None

    def close(self) -> None:
        """Close the descriptor; the slots stay."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class Taken(NamedTuple):
    """What a sender has made of an offer.

    Attributes:
        slots: To write to.
        capacity: How many there are.
        new_memory: Descriptor of slots that the receiver does not know yet, where the offered ones
            cannot be used; else -1.
    """

    slots: SlotTensors
    capacity: int
    new_memory: int


class Greeting:
    """Waits at the sender for the offer, and takes it.

    Args:
        peer: A connected socket, which it owns.
        device: Where messages are sent from.
    """

    def __init__(self, peer: socket.socket, device: torch.device) -> None:
        self._device = device
        self._peer = peer
        self._first = FrameReader(peer, _GREETING.size)
        self._second: FrameReader | None = None  # the export
        self._numbers = (0, 0)

    def poll(self) -> Taken | None:
        """What was offered, if it has come; never blocks.

        Raises:
            ChannelClosed: The receiver is gone, or refused the secret.
            ProtocolError: This is no offer.
            ChannelError: There is not so much memory.
        """
        if self._second is None:
            if not self._first.poll():
                return None
            frame, fds = self._first.take()
            try:
                num_bytes = self._read(frame, fds)
                if not num_bytes:
                    capacity, slot_bytes = self._numbers
                    return Taken(Slots(fds[0], slot_bytes, capacity), capacity, -1)
            finally:
                close_all(fds)
            self._second = FrameReader(self._peer, num_bytes)
        if not self._second.poll():
            return None
        frame, fds = self._second.take()
        close_all(fds)
        return self._open(bytes(frame))

    def _read(self, frame: memoryview, fds: list[int]) -> int:
        magic, version, num_bytes, capacity, slot_bytes = _GREETING.unpack(frame)
        fits = 1 <= capacity <= MAX_CAPACITY and slot_bytes % DEVICE_ALIGNMENT == 0 < slot_bytes
        if not fits or (magic, version, len(fds)) != (MAGIC, VERSION, int(not num_bytes)):
            raise ProtocolError(
                f"the receiver greets with {magic!r}, version {version}, {capacity} slots of "
                f"{slot_bytes} bytes and {len(fds)} descriptors."
            )
        self._numbers = capacity, slot_bytes
        return int(num_bytes)

    def _open(self, export: bytes) -> Taken:
        capacity, slot_bytes = self._numbers
        try:
            return Taken(open_slots(export, slot_bytes, capacity, self._device), capacity, -1)
        except Unshareable as error:
            _log.warning("messages go through pinned memory of the host: %s", error)
        fd = reserve(slot_bytes * capacity)
        return Taken(Slots(fd, slot_bytes, capacity), capacity, fd)

    def close(self) -> None:
        """Close the socket and the descriptors that nobody took."""
        self._first.close()
        if self._second is not None:
            self._second.close()
