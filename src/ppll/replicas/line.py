"""How the replicas of a stage add up: along a line, in a fixed order, over channels.

::

    replica 0  -- own -->  replica 1  -- sum of two -->  replica 2
               <- total -             <----- total -----

A sum goes up the line and the total comes back, so every replica sends and receives it twice at
most, however many there are, and every total is ((r0 + r1) + r2) + ...: the same bits on every
placement and on every host. A row of numbers travels in pieces, so that all links carry something
at the same time. The channels are those of features: shared memory within a host, gloo between
hosts, and a replica that is gone is seen at once. Every piece says what it is of, so that replicas
which do not ask for the same, in the same order, are found at once, too.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppll.channels.base import ReceiveEnd, SendEnd, SlotLayout
from ppll.ending import Ending
from ppll.errors import ProtocolError
from ppll.message import Kind, Message, canonical
from ppll.replicas.exchange import rows_of
from ppll.simulation.line_times import PIECE_BYTES, num_ahead

__all__ = ["Line", "Neighbour", "line_capacity", "piece_layout"]


def line_capacity(num_replicas: int) -> int:
    """Slots of a channel: so many that nobody ever waits to send, and so none in a circle."""
    return num_ahead(num_replicas - 1) + 1


def piece_layout(row_bytes: int) -> SlotLayout:
    """What a slot must hold where the longest row has so many bytes."""
    return SlotLayout({"piece": min(row_bytes, PIECE_BYTES)})


@dataclass
class Neighbour:
    """The channels to and from the replica before or after this one."""

    inbox: ReceiveEnd
    outbox: SendEnd
    num_sent: int = 0

    def send(self, piece: Tensor, what: str, word: int) -> None:
        """Hand a piece over, which stays as it is until ``flush``."""
        tensors = {_field(what): canonical(piece)}
        message = Message(kind=Kind.TRAIN, sequence=self.num_sent, step=word, tensors=tensors)
        self.outbox.send(message)
        self.num_sent += 1

    def receive(self, into: Tensor, what: str, ending: Ending, *, adds: bool = False) -> None:
        """Take the next piece over, or add it, and hear when an interrupted run ends.

        Raises:
            ProtocolError: It is a piece of something else.
        """
        message = self.inbox.recv()
        ending.hear(message.step)
        (into.add_ if adds else into.copy_)(_piece_of(message, what, into))
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

    def add_up(self, tensors: Sequence[Tensor], what: str) -> list[Tensor]:
        """The sums of all replicas' tensors; blocks until all have come here.

        Args:
            tensors: Of the same types and shapes everywhere.
            what: Names them, the same everywhere; its first word is ASCII of 7 letters at most.

        Raises:
            ChannelClosed: A replica is gone.
            ProtocolError: A replica asks for something else.
        """
        totals = list(tensors)
        for indices in rows_of(tensors).values():
            members = [tensors[index] for index in indices]
            for index, total in zip(indices, self._add_up_row(members, what), strict=True):
                totals[index] = total
        return totals

    def gather(self, parts: Sequence[Tensor], own: int, what: str) -> None:
        """Fill in what the other replicas have; blocks until all have come here.

        Args:
            parts: One of each replica, in order, each dense and of the same size everywhere.
            own: Position of this replica, whose part is there.
            what: Names them, as for ``add_up``.

        Raises:
            ChannelClosed: A replica is gone.
            ProtocolError: A replica asks for something else.
        """
        for index, part in enumerate(parts[: own + 1]):
            self._pass(part, what, self._before if index < own else None, self._after)
        for index, part in enumerate(parts[own:]):
            self._pass(part, what, self._after if index else None, self._before)
        self._flush()

    def scatter(self, parts: Sequence[Tensor], own: int, what: str) -> None:
        """Make this replica's part the sum of all replicas'; blocks until all have come here.

        The sums are those of ``add_up``. What becomes of the other parts is open.

        Args:
            parts: One for each replica, in order, each dense and of the same size everywhere.
            own: Position of this replica.
            what: Names them, as for ``add_up``.

        Raises:
            ChannelClosed: A replica is gone.
            ProtocolError: A replica asks for something else.
        """
        for part in parts:
            self._pass(part, what, self._before, self._after, adds=True)
        self._flush()
        for index, part in enumerate(parts[: own + 1]):
            self._pass(part, what, self._after, self._before if index < own else None)
        self._flush()

    def _pass(
        self,
        part: Tensor,
        what: str,
        source: Neighbour | None,
        target: Neighbour | None,
        adds: bool = False,
    ) -> None:
        """Receive a part, if it comes from somewhere, and send it on, if it goes somewhere."""
        for piece in torch.split(part.view(-1), PIECE_BYTES // part.element_size()):
            if source is not None:
                source.receive(piece, what, self._ending, adds=adds)
            if target is not None:
                target.send(piece, what, self._ending.word)

    def _flush(self) -> None:
        for neighbour in (self._before, self._after):
            if neighbour is not None:
                neighbour.outbox.flush()

    def _add_up_row(self, members: Sequence[Tensor], what: str) -> list[Tensor]:
        """Sums of tensors of one type, each on its device."""
        row = torch.cat([tensor.reshape(-1).cpu() for tensor in members])
        step = PIECE_BYTES // row.element_size()
        self._add_up_pieces(torch.tensor_split(row, list(range(step, len(row), step))), what)
        sizes = [tensor.numel() for tensor in members]
        parts = zip(torch.split_with_sizes(row, sizes), members, strict=True)
        return [part.view(tensor.shape).to(tensor.device) for part, tensor in parts]

    def _add_up_pieces(self, pieces: Sequence[Tensor], what: str) -> None:
        for index, piece in enumerate(pieces):
            self._pass(piece, what, self._before, self._after, adds=True)
            if index >= self._num_ahead:
                self._pass_back(pieces[index - self._num_ahead], what)
        for piece in pieces[max(0, len(pieces) - self._num_ahead) :]:
            self._pass_back(piece, what)
        self._flush()

    def _pass_back(self, piece: Tensor, what: str) -> None:
        """Take a total over, in the place of the sum that was sent up, and send it on."""
        if self._after is not None:
            self._after.outbox.flush()
        self._pass(piece, what, self._after, self._before)


def _field(what: str) -> str:
    """The name of a row as short as that of a field must be: its first word, and a sum of all."""
    return f"{what.partition(' ')[0]} {zlib.crc32(what.encode()):08x}"


def _piece_of(message: Message, what: str, like: Tensor) -> Tensor:
    """The piece in a message, which has to be of the row that is due and of this form."""
    piece = message.tensors.get(_field(what))
    if piece is None or (piece.dtype, piece.shape) != (like.dtype, like.shape):
        found = ", ".join(f"{n} {t.dtype} {tuple(t.shape)}" for n, t in message.tensors.items())
        raise ProtocolError(
            f"[{found}] came from a neighbouring replica where {what!r} [{_field(what)} "
            f"{like.dtype} {tuple(like.shape)}] was due. Replicas have to gather and add up the "
            f"same in the same order: a block must call the same layers and auxiliary networks in "
            f"all of them, and each must pass gradients on to those before it; runtime.sharding = "
            f"'none' asks less of it."
        )
    return piece
