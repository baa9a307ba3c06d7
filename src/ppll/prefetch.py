"""The first stage's inbox: messages made ahead of time by a thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

import torch

from ppll.channels.base import ReceiveEnd
from ppll.copies_ahead import CopiesAhead
from ppll.errors import ChannelClosed
from ppll.message import Message

__all__ = ["Prefetcher"]

_JOIN_TIMEOUT_S = 1.0


class Prefetcher(ReceiveEnd):
    """Runs an iterator of messages in a thread, never more than ``capacity`` messages ahead.

    A message counts from when it is made until it is released, as in any channel. What the
    iterator raises is raised by ``ready``, ``wait`` and ``recv`` once every message before it was
    received. The iterator must draw no number from torch's default generator, which belongs to the
    blocks; ``ppll.randomness`` is what it may use.

    Args:
        messages: Makes the messages; only the thread touches it.
        capacity: Most messages that wait or are in use, at least 1.
        device: Where messages are received. For a GPU the thread puts them into page-locked
            memory and queues the copy on a stream of its own, beside the work of who receives.
    """

    def __init__(
        self, messages: Iterator[Message], capacity: int, device: torch.device | None = None
    ) -> None:
        super().__init__(capacity)
        self._copies: CopiesAhead | None = None
        if device is not None and device.type == "cuda":
            self._copies = CopiesAhead.to(device, capacity)
        self._made: deque[Message] = deque()
        self._num_in_use = 0
        self._end: BaseException | None = None  # why nothing follows
        self._changed = threading.Condition()
        # A daemon, so that an iterator that hangs cannot keep the process alive.
        self._thread = threading.Thread(
            target=self._run, args=(messages,), name="ppll-prefetch", daemon=True
        )
        self._thread.start()

    def ready(self) -> bool:
        """Whether the next ``recv`` will not wait.

        Raises:
            ChannelClosed: Nothing follows.
            BaseException: What the iterator has raised, with its traceback.
        """
        with self._changed:
            if not self._made and self._end is not None:
                raise self._end
            return bool(self._made)

    @property
    def fill(self) -> int:
        """Messages that wait to be received or are in use."""
        with self._changed:
            return len(self._made) + self._num_in_use

    def close(self) -> None:
        """End the thread, after the message that it is making now, and drop what waits."""
        with self._changed:
            self._end = ChannelClosed("this end of the channel is closed.")
            self._made.clear()
            self._changed.notify_all()
        self._thread.join(_JOIN_TIMEOUT_S)

    def _wait(self, timeout_s: float | None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._made or self._end is not None, timeout_s)

    def _take(self) -> Message:
        with self._changed:
            self._num_in_use += 1
            message = self._made.popleft()
        if self._copies is not None:
            self._copies.arrive()
        return message

    def _give_back(self) -> None:
        if self._copies is not None:
            self._copies.leave()
        with self._changed:
            self._num_in_use -= 1
            self._changed.notify_all()

    def _run(self, messages: Iterator[Message]) -> None:
        try:
            while self._wait_for_room():
                message = next(messages)
                self._put(message if self._copies is None else self._copies.start(message))
        except StopIteration:
            self._finish(ChannelClosed("the stream of messages has ended."))
        except BaseException as error:
            self._finish(error)

    def _wait_for_room(self) -> bool:
        """Wait until a message may be made; whether one is still wanted."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._end is not None or len(self._made) + self._num_in_use < self.capacity
            )
            return self._end is None

    def _put(self, message: Message) -> None:
        with self._changed:
            if self._end is None:
                self._made.append(message)
                self._changed.notify_all()

    def _finish(self, reason: BaseException) -> None:
        with self._changed:
            if self._end is None:
                self._end = reason
                self._changed.notify_all()
