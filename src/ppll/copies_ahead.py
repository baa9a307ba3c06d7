"""Copies of messages to a GPU, ahead of the work on them and beside it.

::

    thread                pin t, once the copy of t - capacity is over
    side stream                 wait freed ▶ copy t ▶ record copied
    receiver's stream                             wait copied ▶ work on t ▶ record freed

Message t has the events of place ``t % capacity``; ``freed`` is that of message t - capacity. Who
receives and releases never waits: the order is kept on the GPU. The thread does wait, so no more
than ``capacity`` messages lie in page-locked memory, however far the receiver's host is ahead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, Self

import torch

from ppll.channels import device_slots
from ppll.message import Message

__all__ = ["CopiesAhead", "Event"]


class Event(device_slots.Event, Protocol):
    """A ``torch.cuda.Event``."""

    def synchronize(self) -> None:
        """Wait until it is over; at once where it was never recorded."""


class _Place:
    """What is known of the message that came to it last."""

    def __init__(self, new_event: Callable[[], Event]) -> None:
        self.copied = new_event()
        self.freed = new_event()
        self.message: Message | None = None


class CopiesAhead:
    """Messages on their way to a GPU, at most ``capacity`` from ``start`` to ``leave``.

    A copy's memory comes from the allocator and belongs to the side stream there. It is kept here
    until that stream waits for the work on it, and only then may go back: so it is used again in
    the order of streams, whenever the receiver lets go of it. Told by ``record_stream``, the
    allocator would hold it until it sees the work done, and take more the further the host is
    ahead.

    Args:
        capacity: Most messages on their way or in use, at least 1.
        device: Where to.
        side: The stream that copies.
        current: The stream that the receiver works on.
        new_event: Makes an event.
    """

    def __init__(
        self,
        capacity: int,
        device: torch.device,
        *,
        side: Any,
        current: Callable[[], Any],
        new_event: Callable[[], Event],
    ) -> None:
        self._device = device
        self._side = side
        self._current = current
        self._places = [_Place(new_event) for _ in range(capacity)]
        self._num_started = self._num_arrived = self._num_left = 0

    @classmethod
    def to(cls, device: torch.device, capacity: int) -> Self:
        """Copies to a GPU."""
        return cls(
            capacity,
            device,
            side=torch.cuda.Stream(device),  # type: ignore[no-untyped-call]
            current=partial(torch.cuda.current_stream, device),
            new_event=partial(torch.cuda.Event, blocking=True),
        )

    def start(self, message: Message) -> Message:
        """Send a message on its way, in the thread that makes them; message t - capacity has left.

        Returns:
            What will have come when the receiver's stream has waited for it.
        """
        place = self._places[self._num_started % len(self._places)]
        self._num_started += 1
        place.copied.synchronize()
        place.freed.wait(self._side)
        place.message = None
        place.message = self._copy(message)
        place.copied.record(self._side)
        return place.message

    def arrive(self) -> None:
        """Let what the receiver queues from now on find the next message."""
        place = self._places[self._num_arrived % len(self._places)]
        self._num_arrived += 1
        place.copied.wait(self._current())

    def leave(self) -> None:
        """Say that all work on the oldest message is queued."""
        place = self._places[self._num_left % len(self._places)]
        self._num_left += 1
        place.freed.record(self._current())

    def _copy(self, message: Message) -> Message:
        """Queue a copy on the side stream; torch keeps what it pins until it is over."""
        with torch.cuda.stream(self._side):
            return message.pinned().on(self._device, waits=False)
