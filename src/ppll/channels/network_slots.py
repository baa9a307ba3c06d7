"""The slots of a channel between hosts: they know how tensors cross it, here by gloo.

Gloo takes them from the host's memory and puts them there; a receive is posted for every free slot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed import Work

from ppll.channels.group_link import SLOT, GroupLink
from ppll.channels.layout import Layout
from ppll.channels.memory import PROCESSOR, Slots

__all__ = ["GlooReceiveSlots", "GlooSendSlots", "ReceiveSlots", "SendSlots"]


class SendSlots(Protocol):
    """A sender's slots."""

    source: torch.device
    """Where tensors must be that are sent."""
    slot_bytes: int

    def send(self, index: int, layout: Layout, tensors: Mapping[str, Tensor]) -> None:
        """Let tensors go, through a slot that is free; ``layout`` must be theirs and fit.

        Raises:
            ChannelClosed: The other end is gone.
        """

    def flush(self) -> None:
        """Let what was sent be changed by what its caller does next."""

    def give_up(self) -> None:
        """End what is on its way: the other end is gone."""


class ReceiveSlots(Protocol):
    """A receiver's slots."""

    slot_bytes: int

    def expect(self, index: int, num_bytes: int, then: Callable[[], None]) -> None:
        """A header has announced what comes into a slot: call ``then`` when it is there.

        Calls are in the order of what is expected.
        """

    def pass_on(self, then: Callable[[], None]) -> None:
        """Call ``then`` after what is expected so far."""

    def read(self, index: int, layout: Layout) -> dict[str, Tensor]:
        """The tensors that lie in a slot, without a copy; ``layout`` must fit."""
        ...

    def poison(self, index: int) -> None:
        """Set every bit of a slot."""

    def give_back(self, index: int) -> None:
        """Say that a slot is no longer read, before the sender is told."""

    def finish(self) -> None:
        """Wait a while for what is expected; nothing more is."""

    def give_up(self) -> None:
        """Expect nothing more: the other end is gone."""


class GlooSendSlots:
    """Slots in the host's memory, which gloo sends from.

    Args:
        link: To the other end.
        slot_bytes: Size of a slot.
        num_slots: How many there are.

    Raises:
        ChannelError: There is not so much memory.
    """

    source = PROCESSOR

    def __init__(self, link: GroupLink, slot_bytes: int, num_slots: int) -> None:
        self.slot_bytes = slot_bytes
        self._link = link
        self._slots = Slots.reserve(slot_bytes, num_slots)

    def send(self, index: int, layout: Layout, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into a slot, and send that."""
        self._slots.write(index, layout, tensors)
        self._link.send(self._slots.raw(index)[: layout.extent_bytes], SLOT)

    def flush(self) -> None:
        """They are copied."""

    def give_up(self) -> None:
        """The connection has ended what was on its way."""


class GlooReceiveSlots:
    """Slots in the host's memory, which gloo fills; arguments are those of ``GlooSendSlots``."""

    def __init__(self, link: GroupLink, slot_bytes: int, num_slots: int) -> None:
        self.slot_bytes = slot_bytes
        self._link = link
        self._slots = Slots.reserve(slot_bytes, num_slots)
        self._posted = deque(self._post(index) for index in range(num_slots))

    def _post(self, index: int) -> Work:
        return self._link.post(self._slots.raw(index), SLOT)

    def expect(self, index: int, num_bytes: int, then: Callable[[], None]) -> None:  # noqa: ARG002
        """Wait for it."""
        self._posted.popleft().wait()
        then()

    def pass_on(self, then: Callable[[], None]) -> None:
        """Nothing is expected that is not there."""
        then()

    def read(self, index: int, layout: Layout) -> dict[str, Tensor]:
        """The tensors that lie in a slot, without a copy."""
        return self._slots.read(index, layout)

    def poison(self, index: int) -> None:
        """Set every bit of a slot."""
        self._slots.poison(index)

    def give_back(self, index: int) -> None:
        """Let it be filled again."""
        self._posted.append(self._post(index))

    def finish(self) -> None:
        """Everything has come."""

    def give_up(self) -> None:
        """The connection has ended what was on its way."""
