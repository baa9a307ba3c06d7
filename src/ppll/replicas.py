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
from ppll.exchange import rows_of
from ppll.line_times import PIECE_BYTES, num_ahead
from ppll.message import Kind, Message, canonical

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
            self._pass_up(piece)
            if index >= self._num_ahead:
                self._pass_back(pieces[index - self._num_ahead])
        for piece in pieces[max(0, len(pieces) - self._num_ahead) :]:
            self._pass_back(piece)
        if self._before is not None:
            self._before.outbox.flush()

    def _pass_up(self, piece: Tensor) -> None:
        if self._before is not None:
            message = self._before.inbox.recv()
            self._ending.hear(message.step)
            piece.add_(message.tensors[_SUM])
            self._before.inbox.release(message)
        if self._after is not None:
            self._after.send(piece, self._ending.step)

    def _pass_back(self, piece: Tensor) -> None:
        if self._after is not None:
            self._after.outbox.flush()
            message = self._after.inbox.recv()
            piece.copy_(message.tensors[_SUM])
            self._after.inbox.release(message)
        if self._before is not None:
            self._before.send(piece, self._ending.step)
