"""The slots of a channel between GPUs of different hosts, which NCCL empties and fills.

A receive that waits keeps a GPU busy, so NCCL is told of one when its header has come, not for
every free slot. Another thread than the one that hears the headers waits for it then, since that
one must notice who is gone. Only tensors that have come whole are handed on: what is over because
the communicator was given up is not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from ppll.channels.layout import Layout
from ppll.channels.memory import SlotTensors
from ppll.channels.side_stream import Side, SideCopies
from ppll.errors import ChannelError

__all__ = ["Link", "NcclReceiveSlots", "NcclSendSlots"]

_FINISH_S: Final = 5.0


class Link(Protocol):
    """An ``NcclLink``."""

    @property
    def device(self) -> torch.device:
        """This end's GPU."""
        ...

    @property
    def side(self) -> Side:
        """The stream that copies and sends."""
        ...

    def reserve(self, slot_bytes: int, num_slots: int) -> list[Tensor]:
        """Slots of the GPU's memory."""
        ...

    def event(self) -> Any:
        """An event that is over."""
        ...

    def record(self, event: Any) -> None:
        """Let an event be over when what the caller has queued so far is."""

    def send(self, content: Tensor) -> Any:
        """Queue a send behind the current stream; ``wait`` lets the then current one wait."""
        ...

    def receive(self, content: Tensor, freed: Any) -> Any:
        """Queue a receive behind an event; the one that comes back is over when it is."""
        ...

    def give_up(self) -> None:
        """End whatever is on its way."""


class NcclSendSlots(SlotTensors):
    """Slots of a GPU's memory, which NCCL sends from.

    Args:
        link: To the other end.
        slot_bytes: Size of a slot.
        num_slots: How many there are.

    Raises:
        ChannelError: There is not so much memory.
    """

    def __init__(self, link: Link, slot_bytes: int, num_slots: int) -> None:
        super().__init__(link.reserve(slot_bytes, num_slots), slot_bytes)
        self.source = link.device
        self._link = link
        self._copies = SideCopies(link.side)
        self._sent: list[Any] = [None] * num_slots

    @torch.no_grad()
    def send(self, index: int, layout: Layout, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into a slot and send that, some time; they are kept until ``flush``."""
        with self._copies.of(tensors):
            if self._sent[index] is not None:
                self._sent[index].wait()
            for field in layout.fields:
                self._copy(self._view(index, field), tensors[field.name])
            self._sent[index] = self._link.send(self.raw(index)[: layout.extent_bytes])

    def _copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def flush(self) -> None:
        """What the caller queues from now on comes after the copies."""
        self._copies.flush()

    def give_up(self) -> None:
        """End what is on its way."""
        self._link.give_up()


class NcclReceiveSlots(SlotTensors):
    """Slots of a GPU's memory, which NCCL fills.

    Args:
        link: To the other end.
        slot_bytes: Size of a slot.
        num_slots: How many there are.
        fail: Is told what ends the receiving, where it is not that the other end is gone.

    Raises:
        ChannelError: There is not so much memory.
    """

    def __init__(
        self, link: Link, slot_bytes: int, num_slots: int, fail: Callable[[ChannelError], None]
    ) -> None:
        super().__init__(link.reserve(slot_bytes, num_slots), slot_bytes)
        self._link = link
        self._fail = fail
        self._freed = [link.event() for _ in range(num_slots)]
        # The last is None.
        self._expected: SimpleQueue[tuple[Any, Callable[[], None]] | None] = SimpleQueue()
        self._is_given_up = False
        self._thread = threading.Thread(target=self._wait_for_all, name="channel-nccl", daemon=True)
        self._thread.start()

    def expect(self, index: int, num_bytes: int, then: Callable[[], None]) -> None:
        """Let a slot be filled once nobody reads it, and call ``then``, from another thread."""
        filled = self._link.receive(self.raw(index)[:num_bytes], self._freed[index])
        self._expected.put((filled, then))

    def pass_on(self, then: Callable[[], None]) -> None:
        """Call ``then`` after what is expected so far."""
        self._expected.put((None, then))

    def _wait_for_all(self) -> None:
        try:
            while expected := self._expected.get():
                filled, then = expected
                if filled is not None:
                    filled.synchronize()
                if self._is_given_up:  # it may be over without having come
                    return
                then()
        except RuntimeError as error:
            self._fail(
                ChannelError(f"a message cannot be received on {self._link.device}: {error}")
            )

    def give_back(self, index: int) -> None:
        """Let a slot be filled again when what the caller has queued so far is done."""
        self._link.record(self._freed[index])

    def finish(self) -> None:
        """Wait a while for what is expected; nothing more is."""
        self._expected.put(None)
        self._thread.join(_FINISH_S)

    def give_up(self) -> None:
        """Hand on nothing that has not come yet, and end what is on its way."""
        self._is_given_up = True
        self._link.give_up()
        self._expected.put(None)
