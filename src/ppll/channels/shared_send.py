"""The sending end of a channel between processes of one host; ``shared`` says how it works."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self

import torch

from ppll.channels import sockets
from ppll.channels.base import SendEnd
from ppll.channels.greeting import MAX_CAPACITY, Greeting
from ppll.channels.header import HEADER_BYTES, pack_header
from ppll.channels.layout import Layout, layout_of
from ppll.channels.memory import PROCESSOR, Slots, SlotTensors, reserve
from ppll.errors import ChannelClosed, ChannelError, ProtocolError
from ppll.message import Message

__all__ = ["SharedSendEnd"]

_LARGE_BYTES: Final = 1 << 20
"""From here on a copy takes longer than handing it to a thread."""

_DRAIN_S: Final = 60.0
"""Longest wait for a GPU that copies, and is stopped by nobody."""

_TURN_S: Final = 0.001
_THIS_CLOSED: Final = "this end of the channel is closed."


class SharedSendEnd(SendEnd):
    """The end that messages enter.

    It knows its ``capacity`` once the receiver has accepted; before that it is 0 and the end is
    not ready.
    """

    def __init__(self, peer: socket.socket, device: torch.device) -> None:
        super().__init__(capacity=0)
        self._peer = peer
        self._greeting = Greeting(peer, device)
        self._slots: SlotTensors | None = None
        self._new_memory = -1
        self._header = bytearray(HEADER_BYTES)
        self._credits = 0
        self._credit_buffer = bytearray(MAX_CAPACITY)
        self._num_sent = 0
        self._open = True
        self._copier: ThreadPoolExecutor | None = None
        self._copying: Future[None] | None = None

    @classmethod
    def connect(
        cls, path: Path, secret: bytes, timeout_s: float, *, device: torch.device = PROCESSOR
    ) -> Self:
        """Connect to where a receiver listens, or will; do not wait until it accepts.

        A refused secret shows as ``ChannelClosed`` at the first use.

        Args:
            path: Where the receiver listens.
            secret: Bytes that all processes of the run know.
            timeout_s: Seconds to wait for the receiver to listen.
            device: Where messages come from.

        Raises:
            ChannelTimeout: Nobody listened in time.
            ChannelError: The path cannot be used, or another user listens there.
        """
        return cls(sockets.connect(path, secret, timeout_s), device)

    @property
    def device(self) -> torch.device:
        """Where a message's tensors are copied from; others are brought there first."""
        return PROCESSOR if self._slots is None else self._slots.source

    def ready(self) -> bool:
        """Whether the next ``send`` will not wait."""
        if not self._open:
            raise ChannelClosed(_THIS_CLOSED)
        if self._slots is None and not self._take_over_slots():
            return False
        if self._copying is not None and not self._copying.done():
            return False
        self._end_copy()
        self._collect_credits()
        return self._credits > 0

    def flush(self) -> None:
        """Wait until the tensors of all messages sent have been copied.

        Where a GPU copies them, its current stream waits instead, not the caller.
        """
        self._end_copy()
        if self._slots is not None:
            self._slots.flush()

    def _end_copy(self) -> None:
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
            taken = self._greeting.poll()
        except ChannelClosed:
            raise ChannelClosed("the receiver refused the secret, or ended early.") from None
        if taken is None:
            return False
        self._slots, self.capacity, self._new_memory = taken
        self._credits = self.capacity
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
        brings_slots = self._new_memory >= 0 and not oversized
        pack_header(self._header, message, layout, own_memory=oversized, new_slots=brings_slots)
        if oversized:
            message = message.on(PROCESSOR)
        if layout.extent_bytes < _LARGE_BYTES or self._slots.source != PROCESSOR:
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
                self._announce()
        except ConnectionError:
            raise ChannelClosed("the receiver is gone.") from None

    def _announce(self) -> None:
        if self._new_memory < 0:
            self._peer.sendall(self._header)
        else:
            socket.send_fds(self._peer, [self._header], [self._new_memory])
            self._close_new_memory()

    def _close_new_memory(self) -> None:
        if self._new_memory >= 0:
            os.close(self._new_memory)
        self._new_memory = -1

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
        if not self._open:
            return
        self._open = False
        if self._copier is not None:
            self._copier.shutdown()
        if self._slots is not None:
            # A copy that this process has queued dies with it.
            if not self._drained(self._slots):
                self._slots.abandon()
            self._slots.close()
        self._close_new_memory()
        self._greeting.close()

    def _drained(self, slots: SlotTensors) -> bool:
        """Wait while a GPU copies and the receiver is there; whether all is copied."""
        deadline = time.monotonic() + _DRAIN_S
        with contextlib.suppress(ChannelError):
            while not slots.is_idle() and time.monotonic() < deadline:
                sockets.wait_readable(self._peer, _TURN_S)
                self._collect_credits()
        return slots.is_idle()
