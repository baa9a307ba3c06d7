"""The contract of a channel: a bounded FIFO of messages with two ends.

The sender waits while the channel is full, the receiver while it is empty. A message stays in
its slot until the receiver releases it, so a block trains directly on the slot. ``ready`` and
``wait`` let a worker that must not block (a test that interleaves workers) use the same ends as
one that may.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import torch

from ppll.errors import ChannelError, ChannelTimeout, ProtocolError
from ppll.message import DEVICE_ALIGNMENT, Message

__all__ = ["ChannelStatistics", "Inbox", "ReceiveEnd", "SendEnd", "SlotLayout"]


@dataclass(frozen=True)
class SlotLayout:
    """What a slot must hold.

    Attributes:
        field_bytes: Largest size in bytes of each tensor field, by name.
    """

    field_bytes: Mapping[str, int]

    @property
    def slot_bytes(self) -> int:
        """Size of a slot in which every field starts on a ``DEVICE_ALIGNMENT`` boundary."""
        num = sum(-(-size // DEVICE_ALIGNMENT) for size in self.field_bytes.values())
        return max(num, 1) * DEVICE_ALIGNMENT


@dataclass
class ChannelStatistics:
    """What one end of a channel has counted: the diagnosis of a bottleneck.

    Attributes:
        messages: Messages that passed this end.
        payload_bytes: Bytes of their tensors.
        wait_s: Seconds this end waited (a full channel for the sender, an empty one for the
            receiver).
        transport_bytes: Bytes handed to a network, where the channel crosses one.
        oversized: Messages larger than the layout announced; they take a slower way.
    """

    messages: int = 0
    payload_bytes: int = 0
    transport_bytes: int = 0
    wait_s: float = 0.0
    oversized: int = 0


class _End(ABC):
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.statistics = ChannelStatistics()

    @abstractmethod
    def ready(self) -> bool:
        """Whether the next ``send`` or ``recv`` will not wait; never blocks.

        Raises:
            ChannelClosed: The other end is gone (a receiver first gets what was sent before).
        """

    @abstractmethod
    def _wait(self, timeout_s: float | None) -> None:
        """Block until something changed on this end or the time is over."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything; the other end sees ``ChannelClosed``. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close()

    @property
    @abstractmethod
    def fill(self) -> int:
        """Slots in use as far as this end knows, 0 to ``capacity``."""

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until ``ready`` or until the time is over; return ``ready``.

        Raises:
            ChannelClosed: The other end is gone.
        """
        start = time.monotonic()
        deadline = None if timeout_s is None else start + timeout_s
        try:
            while not self.ready():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._wait(left)
            return True
        finally:
            self.statistics.wait_s += time.monotonic() - start

    def _wait_or_fail(self, timeout_s: float | None, what: str) -> None:
        if not self.ready() and not self.wait(timeout_s):
            raise ChannelTimeout(
                f"waited {timeout_s:g} s to {what} ({self.fill} of {self.capacity} slots in use)."
            )


class SendEnd(_End):
    """The end that messages enter."""

    @property
    def device(self) -> torch.device:
        """Where a message's tensors are copied from; others are brought there first."""
        return torch.device("cpu")

    def send(self, message: Message, timeout_s: float | None = None) -> None:
        """Hand a message over; wait while the channel is full.

        The tensors may be copied while the caller goes on, so they must stay as they are until
        ``flush`` returns.

        Raises:
            ChannelClosed: The receiver is gone.
            ChannelTimeout: No slot became free in time.
            ChannelError: The message cannot travel, such as a tensor that requires a gradient.
        """
        for name, tensor in message.tensors.items():
            if tensor.requires_grad:
                raise ChannelError(
                    f"field {name!r} requires a gradient, and none crosses a channel; detach it."
                )
        self._wait_or_fail(timeout_s, "send")
        self._put(message.on(self.device))
        self.statistics.messages += 1
        self.statistics.payload_bytes += sum(t.nbytes for t in message.tensors.values())

    def flush(self) -> None:
        """Wait until the tensors of all messages sent have been copied.

        Raises:
            ChannelClosed: The receiver is gone.
        """
        # Most channels copy before ``send`` returns.

    @abstractmethod
    def _put(self, message: Message) -> None:
        """Copy the message into the free slot and announce it."""


class ReceiveEnd(_End):
    """The end that messages leave, in the order in which they were sent."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._next_sequence: int | None = None
        self._in_use: deque[int] = deque()  # sequence numbers, oldest first

    def recv(self, timeout_s: float | None = None) -> Message:
        """The next message; wait while there is none. Its tensors lie in the channel's slot.

        Raises:
            ChannelClosed: The sender is gone and everything it sent has been received.
            ChannelTimeout: No message came in time.
            ProtocolError: What came is not a message, or not the next one.
        """
        self._wait_or_fail(timeout_s, "receive")
        message = self._take()
        self._note(message)
        self.statistics.messages += 1
        self.statistics.payload_bytes += sum(t.nbytes for t in message.tensors.values())
        return message

    def _note(self, message: Message) -> None:
        expected, found = self._next_sequence, message.sequence
        if expected is not None and found != expected:
            raise ProtocolError(f"message {found} came where message {expected} was expected.")
        self._next_sequence = found + 1
        self._in_use.append(found)

    @abstractmethod
    def _take(self) -> Message:
        """The next message, which is there."""

    def release(self, message: Message) -> None:
        """Give the slot of the oldest received message back to the sender.

        Its tensors must not be used afterwards. Where an end is closed meanwhile, nobody needs the
        slot and nothing happens.

        Raises:
            ChannelError: ``message`` is not the oldest received one that is still in use.
        """
        oldest = self._in_use[0] if self._in_use else None
        if message.sequence != oldest:
            raise ChannelError(
                f"message {message.sequence} was released, but the oldest in use is {oldest}."
            )
        self._in_use.popleft()
        self._give_back()

    @abstractmethod
    def _give_back(self) -> None:
        """Let the sender use the slot of the oldest received message again."""


class Inbox(Protocol):
    """What a worker reads from: a channel's receiving end, or the data loader."""

    statistics: ChannelStatistics

    def ready(self) -> bool:
        """Whether the next ``recv`` will not wait."""
        ...

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until ``ready`` or until the time is over."""
        ...

    def recv(self, timeout_s: float | None = None) -> Message:
        """The next message."""
        ...

    def release(self, message: Message) -> None:
        """Say that the oldest received message is no longer used."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...

    @property
    def fill(self) -> int:
        """Messages that wait to be received or are in use."""
        ...

    @property
    def capacity(self) -> int:
        """Most messages that may wait or be in use."""
        ...
