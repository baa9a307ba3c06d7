"""A channel within one process: what sequential runs and most tests use.

Both ends share one queue. A message counts as in use from ``send`` until ``release``, exactly as
if it lay in a slot of shared memory, so a run in one process waits where a run in many would.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque

import torch
from torch import Tensor

from ppll.channels.base import ReceiveEnd, SendEnd
from ppll.errors import ChannelClosed, ChannelError
from ppll.message import Message, dense_copy

__all__ = ["LocalReceiveEnd", "LocalSendEnd", "local_channel"]


def local_channel(capacity: int, *, poison: bool = False) -> tuple[LocalSendEnd, LocalReceiveEnd]:
    """A channel whose ends may be used by one thread or by one each.

    Args:
        capacity: Most messages that are sent and not yet released; at least 1.
        poison: Fill the tensors of a released message with ones in every bit (NaN for floats), so
            that a test catches whoever keeps a view of them.

    Raises:
        ChannelError: ``capacity`` is less than 1.
    """
    if capacity < 1:
        raise ChannelError(f"a channel holds at least 1 message, not {capacity}.")
    queue = _Queue()
    return LocalSendEnd(capacity, queue), LocalReceiveEnd(capacity, queue, poison=poison)


class _Queue:
    """What the two ends share; every access holds ``changed``."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.sent: deque[Message] = deque()
        self.in_use: deque[Message] = deque()
        self.sender_open = True
        self.receiver_open = True

    @property
    def fill(self) -> int:
        return len(self.sent) + len(self.in_use)


class LocalSendEnd(SendEnd):
    """The end that messages enter; see ``local_channel``."""

    def __init__(self, capacity: int, queue: _Queue) -> None:
        super().__init__(capacity)
        self._queue = queue

    def ready(self) -> bool:
        """Whether the next ``send`` will not wait."""
        with self._queue.changed:
            if not self._queue.sender_open:
                raise ChannelClosed("this end of the channel is closed.")
            if not self._queue.receiver_open:
                raise ChannelClosed("the receiver is gone.")
            return self._queue.fill < self.capacity

    def _wait(self, timeout_s: float | None) -> None:
        queue = self._queue
        with queue.changed:
            queue.changed.wait_for(
                lambda: (
                    queue.fill < self.capacity or not (queue.receiver_open and queue.sender_open)
                ),
                timeout_s,
            )

    def _put(self, message: Message) -> None:
        tensors = {name: dense_copy(tensor) for name, tensor in message.tensors.items()}
        with self._queue.changed:
            self._queue.sent.append(dataclasses.replace(message, tensors=tensors))
            self._queue.changed.notify_all()

    @property
    def fill(self) -> int:
        """Messages that are sent and not yet released."""
        with self._queue.changed:
            return self._queue.fill

    def close(self) -> None:
        """Send nothing more; the receiver still gets what was sent."""
        with self._queue.changed:
            self._queue.sender_open = False
            self._queue.changed.notify_all()


class LocalReceiveEnd(ReceiveEnd):
    """The end that messages leave; see ``local_channel``."""

    def __init__(self, capacity: int, queue: _Queue, *, poison: bool) -> None:
        super().__init__(capacity)
        self._queue = queue
        self._poison = poison

    def ready(self) -> bool:
        """Whether the next ``recv`` will not wait."""
        with self._queue.changed:
            if not self._queue.receiver_open:
                raise ChannelClosed("this end of the channel is closed.")
            if not (self._queue.sent or self._queue.sender_open):
                raise ChannelClosed("the sender is gone.")
            return bool(self._queue.sent)

    def _wait(self, timeout_s: float | None) -> None:
        queue = self._queue
        with queue.changed:
            queue.changed.wait_for(
                lambda: queue.sent or not (queue.sender_open and queue.receiver_open), timeout_s
            )

    def _take(self) -> Message:
        with self._queue.changed:
            message = self._queue.sent.popleft()
            self._queue.in_use.append(message)
            return message

    def _give_back(self) -> None:
        with self._queue.changed:
            if not self._queue.in_use:  # this end was closed
                return
            if self._poison:
                for tensor in self._queue.in_use[0].tensors.values():
                    _fill_with_ones(tensor)
            self._queue.in_use.popleft()
            self._queue.changed.notify_all()

    @property
    def fill(self) -> int:
        """Messages that are sent and not yet released."""
        with self._queue.changed:
            return self._queue.fill

    def close(self) -> None:
        """Receive nothing more; what waits is dropped."""
        with self._queue.changed:
            self._queue.receiver_open = False
            self._queue.sent.clear()
            self._queue.in_use.clear()
            self._queue.changed.notify_all()


@torch.no_grad()
def _fill_with_ones(tensor: Tensor) -> None:
    """Set every bit of a dense tensor, through a view, so that autograd notices."""
    tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).fill_(0xFF)
