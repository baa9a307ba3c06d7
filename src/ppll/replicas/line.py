"""How the replicas of a stage add up: along a line, in a fixed order, over channels.

::

    replica 0  -- own -->  replica 1  -- sum of two -->  replica 2
               <- total -             <----- total -----

A sum goes up the line and the total comes back, so every replica sends and receives it twice at
most, however many there are, and every total is ((r0 + r1) + r2) + ...: the same bits on every
placement and on every host. A row of numbers travels in pieces, so that all links carry something
at the same time. The channels are those of features: shared memory within a host, gloo between
hosts, and a replica that is gone is seen at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ppll.channels.base import ReceiveEnd, SendEnd, SlotLayout
from ppll.ending import Ending
from ppll.message import Kind, Message, canonical
from ppll.replicas.exchange import rows_of
from ppll.simulation.line_times import PIECE_BYTES, num_ahead

__all__ = ["Line", "Neighbour", "line_capacity", "piece_layout"]

_SUM: Final = "sum"


def line_capacity(num_replicas: int) -> int:
    """Slots of a channel: so many that nobody ever waits to send, and so none in a circle."""
    return num_ahead(num_replicas - 1) + 1


def piece_layout(row_bytes: int) -> SlotLayout:
    """What a slot must hold where the longest row has so many bytes."""
    return SlotLayout({_SUM: min(row_bytes, PIECE_BYTES)})


@dataclass
class Neighbour:
    """The channels to and from the replica before or after this one."""

    inbox: ReceiveEnd
    outbox: SendEnd
    num_sent: int = 0

    def send(self, piece: Tensor, last_step: int) -> None:
        """Hand a piece over, which stays as it is until ``flush``."""
        tensors = {_SUM: canonical(piece)}
        message = Message(kind=Kind.TRAIN, sequence=self.num_sent, step=last_step, tensors=tensors)
        self.outbox.send(message)
        self.num_sent += 1

    def receive(self, into: Tensor, ending: Ending, *, adds: bool = False) -> None:
        """Take the next piece over, or add it, and hear when an interrupted run ends."""
        message = self.inbox.recv()
        ending.hear(message.step)
        (into.add_ if adds else into.copy_)(message.tensors[_SUM])
        self.inbox.release(message)


class Line:
    """A replica's place in the line of its stage.

    Args:
        before: The replica before; none for the first.
        after: The replica after; none for the last.
        num_links_after: Replicas after this one.
        ending: Names the batch after which an interrupted run ends, or hears it.
    """

    def __init__(
        self,
        before: Neighbour | None,
        after: Neighbour | None,
        num_links_after: int,
        ending: Ending,
    ) -> None:
        self._before = before
        self._after = after
        self._num_ahead = num_ahead(num_links_after)
        self._ending = ending

    def add_up(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums of all replicas' tensors; blocks until all have come here.

        Raises:
            ChannelClosed: A replica is gone.
        """
        totals = list(tensors)
        for indices in rows_of(tensors).values():
            members = [tensors[index] for index in indices]
            for index, total in zip(indices, self._add_up_row(members), strict=True):
                totals[index] = total
        return totals

    def gather(self, parts: Sequence[Tensor], own: int) -> None:
        """Fill in what the other replicas have; blocks until all have come here.

        Args:
            parts: One of each replica, in order, each dense and of the same size everywhere.
            own: Position of this replica, whose part is there.

        Raises:
            ChannelClosed: A replica is gone.
        """
        for index, part in enumerate(parts[: own + 1]):
            self._pass(part, self._before if index < own else None, self._after)
        for index, part in enumerate(parts[own:]):
            self._pass(part, self._after if index else None, self._before)
        self._flush()

    def scatter(self, parts: Sequence[Tensor], own: int) -> None:
        """Make this replica's part the sum of all replicas'; blocks until all have come here.

        The sums are those of ``add_up``. What becomes of the other parts is open.

        Args:
            parts: One for each replica, in order, each dense and of the same size everywhere.
            own: Position of this replica.

        Raises:
            ChannelClosed: A replica is gone.
        """
        for part in parts:
            self._pass(part, self._before, self._after, adds=True)
        self._flush()
        for index, part in enumerate(parts[: own + 1]):
            self._pass(part, self._after, self._before if index < own else None)
        self._flush()

    def _pass(
        self, part: Tensor, source: Neighbour | None, target: Neighbour | None, adds: bool = False
    ) -> None:
        """Receive a part, if it comes from somewhere, and send it on, if it goes somewhere."""
        for piece in torch.split(part.view(-1), PIECE_BYTES // part.element_size()):
            if source is not None:
                source.receive(piece, self._ending, adds=adds)
            if target is not None:
                target.send(piece, self._ending.step)

    def _flush(self) -> None:
        for neighbour in (self._before, self._after):
            if neighbour is not None:
                neighbour.outbox.flush()

    def _add_up_row(self, members: Sequence[Tensor]) -> list[Tensor]:
        """Sums of tensors of one type, each on its device."""
        row = torch.cat([tensor.reshape(-1).cpu() for tensor in members])
        step = PIECE_BYTES // row.element_size()
        self._add_up_pieces(torch.tensor_split(row, list(range(step, len(row), step))))
        sizes = [tensor.numel() for tensor in members]
        parts = zip(torch.split_with_sizes(row, sizes), members, strict=True)
        return [part.view(tensor.shape).to(tensor.device) for part, tensor in parts]

    def _add_up_pieces(self, pieces: Sequence[Tensor]) -> None:
        for index, piece in enumerate(pieces):
            self._pass(piece, self._before, self._after, adds=True)
            if index >= self._num_ahead:
                self._pass_back(pieces[index - self._num_ahead])
        for piece in pieces[max(0, len(pieces) - self._num_ahead) :]:
            self._pass_back(piece)
        self._flush()

    def _pass_back(self, piece: Tensor) -> None:
        """Take a total over, in the place of the sum that was sent up, and send it on."""
        if self._after is not None:
            self._after.outbox.flush()
        self._pass(piece, self._after, self._before)
