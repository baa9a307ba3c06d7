"""The first stage's inbox where batches are made on its device: each when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator

from ppll.channels.base import ReceiveEnd
from ppll.errors import ChannelClosed
from ppll.message import Message

__all__ = ["OnDemand"]


class OnDemand(ReceiveEnd):
    """Makes a message when it is received, in the caller's thread.

    On a GPU the work of making it is queued in the caller's stream, in order with what the caller
    does with it, so there is nothing to wait for and nothing to make ahead: the host runs ahead of
    the GPU anyway.

    Args:
        messages: Makes the messages.
    """

    def __init__(self, messages: Iterator[Message]) -> None:
        super().__init__(capacity=1)
        self._messages = messages
        self._num_in_use = 0
        self._closed = False

    def ready(self) -> bool:
        """Always, unless it is closed.

        Raises:
            ChannelClosed: This end is closed.
        """
        if self._closed:
            raise ChannelClosed("this end of the channel is closed.")
        return True

    @property
    def fill(self) -> int:
        """Messages that are in use."""
        return self._num_in_use

    def close(self) -> None:
        """Make no more messages."""
        self._closed = True

    def _wait(self, timeout_s: float | None) -> None:
        """There is nothing to wait for."""

    def _take(self) -> Message:
        message = next(self._messages, None)
        if message is None:
            raise ChannelClosed("the stream of messages has ended.")
        self._num_in_use += 1
        return message

    def _give_back(self) -> None:
        self._num_in_use -= 1
