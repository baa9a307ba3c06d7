"""A channel between processes of one host: tensors in shared memory, headers over a Unix socket.

::

    sender                                                   receiver
      copy the tensors ──▶ │ slot 0 │ slot 1 │ slot 2 │ ──▶ views, no copy
      send a header    ─────────────── socket ─────────────▶ check it, receive
      may send again   ◀────────────── socket ────────────── release: one byte, a credit

The receiver owns the slots and hands their descriptor to the sender when it accepts. Message n
lies in slot n modulo capacity; a mark without tensors takes a slot as well, so the credits alone
say what is free. A message that is larger than announced travels in memory of its own, whose
descriptor goes with the header. When a process dies, the kernel closes its socket, and the other
end knows at once.

No process waits for another if each listens first, then connects, then accepts::

    receive_end = SharedReceiveEnd.listen(path, layout, capacity, secret)
    send_end = SharedSendEnd.connect(next_path, secret, timeout_s)
    receive_end.accept(timeout_s)
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections import deque
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self

from ppll.channels import sockets
from ppll.channels.base import ReceiveEnd, SendEnd, SlotLayout
from ppll.channels.header import (
    HEADER_BYTES,
    MAGIC,
    VERSION,
    Header,
    pack_header,
    unpack_header,
)
from ppll.channels.layout import Layout, layout_of
from ppll.channels.memory import Slots, reserve
from ppll.channels.sockets import FrameReader
from ppll.errors import ChannelClosed, ChannelError, ProtocolError
from ppll.message import ALIGNMENT, Message

__all__ = ["MAX_CAPACITY", "SharedReceiveEnd", "SharedSendEnd"]

_LARGE_BYTES: Final = 1 << 20
"""From here on a copy takes longer than handing it to a thread."""

MAX_CAPACITY: Final = 64
"""So many headers always fit the socket's buffer: a send that has a credit never waits."""

_GREETING: Final = struct.Struct("<4sHxxqq")  # magic, version, capacity, bytes of a slot
_CREDIT: Final = b"\1"
_THIS_CLOSED: Final = "this end of the channel is closed."


class SharedSendEnd(SendEnd):
    """The end that messages enter.

    It knows its ``capacity`` once the receiver has accepted; before that it is 0 and the end is
    not ready.
    """

    def __init__(self, peer: socket.socket) -> None:
        super().__init__(capacity=0)
        self._peer = peer
        self._greeting = FrameReader(peer, _GREETING.size)
        self._slots: Slots | None = None
        self._header = bytearray(HEADER_BYTES)
        self._credits = 0
        self._credit_buffer = bytearray(MAX_CAPACITY)
        self._num_sent = 0
        self._open = True
        self._copier: ThreadPoolExecutor | None = None
        self._copying: Future[None] | None = None

    @classmethod
    def connect(cls, path: Path, secret: bytes, timeout_s: float) -> Self:
        """Connect to where a receiver listens, or will; do not wait until it accepts.

        A refused secret shows as ``ChannelClosed`` at the first use.

        Args:
            path: Where the receiver listens.
            secret: Bytes that all processes of the run know.
            timeout_s: Seconds to wait for the receiver to listen.

        Raises:
            ChannelTimeout: Nobody listened in time.
            ChannelError: The path cannot be used, or another user listens there.
        """
        return cls(sockets.connect(path, secret, timeout_s))

    def ready(self) -> bool:
        """Whether the next ``send`` will not wait."""
        if not self._open:
            raise ChannelClosed(_THIS_CLOSED)
        if self._slots is None and not self._take_over_slots():
            return False
        if self._copying is not None and not self._copying.done():
            return False
        self.flush()
        self._collect_credits()
        return self._credits > 0

    def flush(self) -> None:
        """Wait until the tensors of all messages sent have been copied."""
        if self._copying is not None:
            copying, self._copying = self._copying, None
            copying.result()

    def _wait(self, timeout_s: float | None) -> None:
        if self._copying is not None:
            futures.wait([self._copying], timeout_s)
        else:
            sockets.wait_readable(self._peer, timeout_s)

    def _take_over_slots(self) -> bool:
        try:
            if not self._greeting.poll():
                return False
        except ChannelClosed:
            raise ChannelClosed("the receiver refused the secret, or ended early.") from None
        frame, fds = self._greeting.take()
        try:
            magic, version, capacity, slot_bytes = _GREETING.unpack(frame)
            has_slots = 1 <= capacity <= MAX_CAPACITY and slot_bytes % ALIGNMENT == 0 < slot_bytes
            if not has_slots or (magic, version, len(fds)) != (MAGIC, VERSION, 1):
                raise ProtocolError(
                    f"the receiver greets with {magic!r}, version {version}, {capacity} slots of "
                    f"{slot_bytes} bytes and {len(fds)} descriptors."
                )
            self._slots = Slots(fds[0], slot_bytes, capacity)
        finally:
            sockets.close_all(fds)
        self.capacity = self._credits = capacity
        return True

    def _collect_credits(self) -> None:
        try:
            # Not done before the socket is empty: behind the credits may be the receiver's end.
            while count := self._peer.recv_into(self._credit_buffer, 0, socket.MSG_DONTWAIT):
                self._credits += count
        except BlockingIOError:
            if self._credits > self.capacity:
                raise ProtocolError(
                    f"{self._credits} credits came back for {self.capacity} slots."
                ) from None
            return
        except ConnectionError:
            pass
        raise ChannelClosed("the receiver is gone.")

    def _put(self, message: Message) -> None:
        assert self._slots is not None  # it is ready
        layout = layout_of(message.tensors)
        oversized = layout.extent_bytes > self._slots.slot_bytes
        pack_header(self._header, message, layout, own_memory=oversized)
        if layout.extent_bytes < _LARGE_BYTES:
            self._copy_and_announce(self._num_sent, message, layout, oversized)
        else:
            # A large copy takes as long as a small layer: it runs while the block learns.
            self._copier = self._copier or ThreadPoolExecutor(1, "channel-copy")
            self._copying = self._copier.submit(
                self._copy_and_announce, self._num_sent, message, layout, oversized
            )
        self._num_sent += 1
        self._credits -= 1

    def _copy_and_announce(
        self, number: int, message: Message, layout: Layout, oversized: bool
    ) -> None:
        assert self._slots is not None  # it is ready
        try:
            if oversized:
                self._send_with_memory(message, layout)
            else:
                self._slots.write(number % self.capacity, layout, message.tensors)
                self._peer.sendall(self._header)
        except ConnectionError:
            raise ChannelClosed("the receiver is gone.") from None

    def _send_with_memory(self, message: Message, layout: Layout) -> None:
        fd = reserve(layout.extent_bytes)
        try:
            Slots(fd, layout.extent_bytes, 1).write(0, layout, message.tensors)
            socket.send_fds(self._peer, [self._header], [fd])
        finally:
            os.close(fd)
        self.statistics.oversized += 1

    @property
    def fill(self) -> int:
        """Slots in use when this end last looked."""
        return self.capacity - self._credits

    def close(self) -> None:
        """Send nothing more; the receiver still gets what was sent."""
        self._open = False
        if self._copier is not None:
            self._copier.shutdown()
        self._greeting.close()
        if self._slots is not None:
            self._slots.close()


class SharedReceiveEnd(ReceiveEnd):
    """The end that messages leave; ``listen`` makes it and ``accept`` completes it."""

    def __init__(
        self, path: Path, slot_bytes: int, capacity: int, secret: bytes, *, poison: bool
    ) -> None:
        super().__init__(capacity)
        self._secret = secret
        self._poison = poison
        self._reader: FrameReader | None = None
        self._places: deque[tuple[Slots, int]] = deque()  # of the messages in use, oldest first
        self._num_received = 0
        self._open = True
        with contextlib.ExitStack() as undo:
            self._listener = sockets.listen(path)
            undo.callback(path.unlink, missing_ok=True)
            undo.callback(self._listener.close)
            self._memory = reserve(slot_bytes * capacity)
            undo.callback(os.close, self._memory)
            self._slots = Slots(self._memory, slot_bytes, capacity)
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
    ) -> Self:
        """Reserve the slots and let the sender connect; ``accept`` then completes the channel.

        Args:
            path: Where to listen: a new name in a folder that only this user may enter.
            layout: What a slot must hold; larger messages come through all the same, slower.
            capacity: Slots, 1 to ``MAX_CAPACITY``.
            secret: Bytes that all processes of the run know.
            poison: Set every bit of a slot before it is given back (NaN for floats), so that a
                test catches whoever keeps a view of it.

        Raises:
            ChannelError: The capacity is out of range, memory is short, or the path is no good.
        """
        if not 1 <= capacity <= MAX_CAPACITY:
            raise ChannelError(f"a channel has 1 to {MAX_CAPACITY} slots, not {capacity}.")
        return cls(path, layout.slot_bytes, capacity, secret, poison=poison)

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
        greeting = _GREETING.pack(MAGIC, VERSION, self.capacity, self._slots.slot_bytes)
        try:
            socket.send_fds(peer, [greeting], [self._memory])
        except ConnectionError:
            raise ChannelClosed("the sender is gone.") from None
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
        return header.message(slots.read(index, header.layout))

    def _place(self, header: Header, fds: list[int]) -> tuple[Slots, int]:
        """The slot that a message lies in, after checking that it does."""
        extent, slot_bytes = header.layout.extent_bytes, self._slots.slot_bytes
        if len(fds) != header.own_memory:
            raise ProtocolError(
                f"{len(fds)} descriptors came with a message, expected {int(header.own_memory)}."
            )
        if header.own_memory == (extent <= slot_bytes):
            where = "memory of its own" if header.own_memory else "a slot"
            raise ProtocolError(
                f"a message of {extent} bytes lies in {where}; slots have {slot_bytes} bytes."
            )
        if len(self._places) >= self.capacity:
            raise ProtocolError(f"more messages came than the {self.capacity} slots hold.")
        if not header.own_memory:
            return self._slots, self._num_received % self.capacity
        return Slots(fds[0], extent, 1), 0

    def _give_back(self) -> None:
        if not self._open:
            return
        assert self._reader is not None  # a message was received
        slots, index = self._places.popleft()
        if self._poison:
            slots.poison(index)
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
        self._open = False
        self._until_accepted.close()
        self._places.clear()
        self._slots.close()
        if self._reader is not None:
            self._reader.close()
