"""A worker's ends of channels, and what it waits for at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from ppll.blocks.slow import SlowParameters
from ppll.channels.base import Inbox, ReceiveEnd, SendEnd
from ppll.errors import ProtocolError
from ppll.replicas.line import Line

__all__ = ["PARAMETERS", "Ends", "SlowInbox", "Waiting"]

PARAMETERS: Final = "parameters"
"""The field of a message of the side channel."""


class Waiting(Protocol):
    """What a worker waits for: an end of a channel, or the data loader."""

    def ready(self) -> bool:
        """Whether it is over."""
        ...

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until there is something to do or the time is over."""
        ...


@dataclass(frozen=True)
class Ends:
    """Where a worker's messages come from and go to.

    Attributes:
        inbox: Where messages come from.
        outbox: Where they go; none for the last stage.
        late_inbox: Where the second parts of messages come from, where the method has some.
        late_outbox: Where they go.
        slow_inbox: Where parameters of a later stage come from, where the method reads them.
        slow_outboxes: Where the stage's own go: to the stage before, or to all before.
        line: Where its blocks add up with other replicas, if there are some.
        makes_batches: Whether the inbox makes a batch when it is received, which is work and no
            wait.
    """

    inbox: Inbox
    outbox: SendEnd | None = None
    late_inbox: Inbox | None = None
    late_outbox: SendEnd | None = None
    slow_inbox: ReceiveEnd | None = None
    slow_outboxes: tuple[SendEnd, ...] = ()
    line: Line | None = None
    makes_batches: bool = False


class SlowInbox:
    """Feeds blocks' slow parameters from the side channel for as long as something is missing.

    Args:
        readers: Of all blocks that the channel feeds.
        inbox: Where they come from; none where the block that is read is in the same process.
        is_over: Whether nothing is missing.
    """

    def __init__(
        self,
        readers: Sequence[SlowParameters],
        inbox: ReceiveEnd | None,
        is_over: Callable[[], bool],
    ) -> None:
        self._readers = readers
        self._inbox = inbox
        self._is_over = is_over

    def ready(self) -> bool:
        """Whether nothing is missing any more.

        Raises:
            ChannelClosed: It cannot come any more.
            ProtocolError: Something else came.
        """
        while not self._is_over() and self._inbox is not None and self._inbox.ready():
            message = self._inbox.recv()
            if set(message.tensors) != {PARAMETERS}:
                raise ProtocolError(f"{set(message.tensors)} came over the side channel.")
            values = message.tensors[PARAMETERS].clone()
            for reader in self._readers:
                reader.put(values)
            self._inbox.release(message)
        return self._is_over()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until something has come or the time is over."""
        assert self._inbox is not None, "a later block of this process has not learned"
        return self._inbox.wait(timeout_s)
