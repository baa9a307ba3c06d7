"""What it takes replicas to add up along a line (no torch).

The line is played piece by piece, with the order in which every replica sends; see
``replicas/line.py``. It begins beside the backward pass, bucket by bucket; see
``replicas/exchange.py``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from ppll.simulation.links import Link

__all__ = ["BUCKET_BYTES", "PIECE_BYTES", "exposed_s", "line_bytes", "line_s", "made_evenly"]
__all__ += ["num_ahead", "slots_bytes"]

PIECE_BYTES: Final = 1 << 20
"""Bytes of gradients that travel between replicas at once."""
BUCKET_BYTES: Final = 4 << 20
"""Bytes of gradients that are added up at once, or more; the sums are the same with any."""
_MOST_AHEAD: Final = 63
"""One fewer than a channel has slots, so that nobody ever waits to send."""
_NUMBER_BYTES: Final = 8  # of what goes along at last; it is the latency that counts


def exposed_s(made: Iterable[tuple[float, float]], num_replicas: int, link: Link) -> float:
    """Seconds for which replicas go on adding up when a block's backward pass is over.

    Gradients are added up in buckets, one after the other, each as soon as it is made; at last
    a few numbers go along the line: whether the batch is left out, and who has which gradients.

    Args:
        made: Steps of the backward pass: their seconds, and bytes of gradients that are there then.
        num_replicas: That add up.
        link: Between them.
    """
    if num_replicas == 1:
        return 0.0
    now_s = done_s = waiting = 0.0
    for seconds, num_bytes in made:
        now_s += seconds
        waiting += num_bytes
        while waiting >= BUCKET_BYTES:
            done_s = max(now_s, done_s) + line_s(BUCKET_BYTES, num_replicas, link)
            waiting -= BUCKET_BYTES
    done_s = max(now_s, done_s) + (line_s(waiting, num_replicas, link) if waiting else 0.0)
    return done_s - now_s + line_s(_NUMBER_BYTES, num_replicas, link)


def made_evenly(seconds: float, num_bytes: float) -> Iterator[tuple[float, float]]:
    """A backward pass that makes gradients all the time, bucket after bucket."""
    left = num_bytes
    while left > BUCKET_BYTES:
        yield seconds * BUCKET_BYTES / num_bytes, BUCKET_BYTES
        left -= BUCKET_BYTES
    yield seconds * (left / num_bytes if num_bytes else 1.0), left


def line_bytes(num_bytes: int, num_replicas: int) -> int:
    """What a process holds to add up so many bytes: a bucket in a row, and its slots."""
    if num_replicas == 1:
        return 0
    return min(num_bytes, BUCKET_BYTES) + slots_bytes(num_bytes, num_replicas)


def slots_bytes(num_bytes: int, num_replicas: int) -> int:
    """What the slots of a process's line hold of it."""
    num_inboxes = min(2, num_replicas - 1)
    slots = num_inboxes * (num_ahead(num_replicas - 1) + 1)
    return slots * min(num_bytes, PIECE_BYTES)


def num_ahead(num_links: int) -> int:
    """Pieces that a replica passes up before the first is back, with so many links after it: as
    many as are under way on them and back, but for long lines."""
    return min(2 * num_links, _MOST_AHEAD)


@functools.cache
def line_s(num_bytes: float, num_replicas: int, link: Link) -> float:
    """Seconds in which replicas, a host each, add up so many bytes, and all have the total."""
    if num_replicas == 1:
        return 0.0
    num_pieces = max(1, math.ceil(num_bytes / PIECE_BYTES))
    piece_s = link.transfer_s(num_bytes / num_pieces)
    played = min(num_pieces, 8 * num_replicas)
    line = _PlayedLine(num_replicas, piece_s, link.latency_s)
    seconds = line.play(played)
    if played < num_pieces:  # All further ones come as the second half of these did.
        half = _PlayedLine(num_replicas, piece_s, link.latency_s).play(played // 2)
        seconds += (num_pieces - played) * (seconds - half) / (played - played // 2)
    return seconds


class _PlayedLine:
    """The pieces of a line: up from replica to replica, and the totals back.

    Every replica receives and sends in a fixed order, one piece after the other through its
    network, each way. What it sends leaves by itself.
    """

    def __init__(self, num_replicas: int, piece_s: float, latency_s: float) -> None:
        self._num = num_replicas
        self._piece_s = piece_s
        self._latency_s = latency_s
        self._now = [0.0] * num_replicas
        self._out_free = [0.0] * num_replicas
        self._in_free = [0.0] * num_replicas
        self._arrived: dict[tuple[bool, int, int], float] = {}

    def play(self, num_pieces: int) -> float:
        """Seconds until every replica has so many totals."""
        orders = [self._order(replica, num_pieces) for replica in range(self._num)]
        places = [0] * self._num
        for _ in range(sum(map(len, orders))):
            # The networks serve what comes first.
            begins = [self._begin_s(r, orders[r], places[r]) for r in range(self._num)]
            replica = begins.index(min(begins))
            self._step(replica, *orders[replica][places[replica]])
            places[replica] += 1
        return max(self._now)

    def _begin_s(self, replica: int, order: Sequence[tuple[bool, int]], place: int) -> float:
        """When a replica can pass on what follows; never where nothing does, or it has not come."""
        if place == len(order):
            return math.inf
        back, piece = order[place]
        begin_s = max(self._now[replica], self._out_free[replica])
        if 0 <= (replica + 1 if back else replica - 1) < self._num:
            begin_s = max(begin_s, self._arrived.get((back, replica, piece), math.inf))
        return begin_s

    def _order(self, replica: int, num_pieces: int) -> list[tuple[bool, int]]:
        """What a replica passes on: whether back, and which piece."""
        ahead = num_ahead(self._num - 1 - replica)
        order: list[tuple[bool, int]] = []
        for piece in range(num_pieces + ahead):
            order += [(False, piece)] if piece < num_pieces else []
            order += [(True, piece - ahead)] if piece >= ahead else []
        return order

    def _step(self, replica: int, back: bool, piece: int) -> None:
        """Pass on a piece that has come."""
        came = self._arrived.pop((back, replica, piece), 0.0)
        self._now[replica] = max(self._now[replica], came)
        goes = replica - 1 if back else replica + 1
        if 0 <= goes < self._num:
            self._out_free[replica] = max(self._now[replica], self._out_free[replica])
            self._out_free[replica] += self._piece_s
            arrived = max(self._out_free[replica], self._in_free[goes] + self._piece_s)
            self._in_free[goes] = arrived
            self._arrived[back, goes, piece] = arrived + self._latency_s
