"""Ways from one process of this host to another, each as its documentation recommends.

- ``shared``: PPLL's channel;
- ``queue``: a ``multiprocessing.Queue`` of tensors, which torch moves to shared memory;
- ``gloo``: ``isend`` and ``irecv`` of ``torch.distributed``, receives posted ahead.

All send one tensor of bytes again and again, warm in the sender's caches as what was just computed
is. None copies it at the receiver, who reads its last byte where it lies and gives the place back.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Final, NamedTuple, cast

import torch
from torch import Tensor
from torch import distributed as dist

from ppll.channels.base import SlotLayout
from ppll.channels.shared import SharedReceiveEnd, SharedSendEnd
from ppll.message import FEATURES, Kind, Message

__all__ = ["TIMEOUT_S", "TRANSPORTS", "Route", "Transport"]

TIMEOUT_S: Final = 60.0
"""Nobody waits longer for the other process."""


@dataclass(frozen=True)
class Route:
    """What both processes know.

    Attributes:
        num_bytes: Size of a message.
        num_messages: How many are sent in all.
        capacity: How many are in flight at most.
        folder: Private folder in which the processes meet.
        secret: Bytes that only they know.
        queue: Made by their parent, for the transport that needs one.
    """

    num_bytes: int
    num_messages: int
    capacity: int
    folder: Path
    secret: bytes
    queue: Queue[Tensor]


_Move = Callable[[], None]
_End = Callable[[Route], AbstractContextManager[_Move]]


class Transport(NamedTuple):
    """Both ends of a way.

    Attributes:
        sending: Opens one end; what it gives sends the next message.
        receiving: Opens the other; what it gives waits for the next message and reads it.
    """

    sending: _End
    receiving: _End


def _read(tensor: Tensor) -> None:
    tensor[-1].item()


@contextmanager
def _send_shared(route: Route) -> Iterator[_Move]:
    end = SharedSendEnd.connect(route.folder / "channel", route.secret, TIMEOUT_S)
    tensors = {FEATURES: torch.zeros(route.num_bytes, dtype=torch.uint8)}
    numbers = itertools.count()

    def send() -> None:
        number = next(numbers)
        message = Message(kind=Kind.TRAIN, sequence=number, step=number + 1, tensors=tensors)
        end.send(message, TIMEOUT_S)

    try:
        yield send
    finally:
        end.close()


@contextmanager
def _receive_shared(route: Route) -> Iterator[_Move]:
    layout = SlotLayout({FEATURES: route.num_bytes})
    end = SharedReceiveEnd.listen(route.folder / "channel", layout, route.capacity, route.secret)

    def receive() -> None:
        message = end.recv(TIMEOUT_S)
        _read(message.features)
        end.release(message)

    try:
        end.accept(TIMEOUT_S)
        yield receive
    finally:
        end.close()


@contextmanager
def _send_queue(route: Route) -> Iterator[_Move]:
    memory = bytearray(route.num_bytes)

    def send() -> None:
        # A new tensor on the same memory: one that was sent before lies in shared memory already.
        route.queue.put(torch.frombuffer(memory, dtype=torch.uint8), timeout=TIMEOUT_S)

    yield send


@contextmanager
def _receive_queue(route: Route) -> Iterator[_Move]:
    yield lambda: _read(route.queue.get(timeout=TIMEOUT_S))


@contextmanager
def _send_gloo(route: Route) -> Iterator[_Move]:
    tensor = torch.zeros(route.num_bytes, dtype=torch.uint8)
    sending: deque[dist.Work] = deque()

    def send() -> None:
        if len(sending) == route.capacity:
            sending.popleft().wait()
        sending.append(cast(dist.Work, dist.isend(tensor, 1)))

    with _group(route, 0):
        yield send
        for work in sending:
            work.wait()


@contextmanager
def _receive_gloo(route: Route) -> Iterator[_Move]:
    buffers = itertools.cycle(
        [torch.empty(route.num_bytes, dtype=torch.uint8) for _ in range(route.capacity)]
    )
    posted: deque[tuple[dist.Work, Tensor]] = deque()
    ahead = itertools.islice(buffers, route.num_messages)  # none is posted that nobody answers

    def post(buffer: Tensor) -> None:
        posted.append((cast(dist.Work, dist.irecv(buffer, 0)), buffer))

    def receive() -> None:
        work, buffer = posted.popleft()
        work.wait()
        _read(buffer)
        for following in itertools.islice(ahead, 1):
            post(following)

    with _group(route, 1):
        for buffer in itertools.islice(ahead, route.capacity):
            post(buffer)
        yield receive


@contextmanager
def _group(route: Route, rank: int) -> Iterator[None]:
    """Both processes connected by gloo over the loopback interface."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{route.folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=TIMEOUT_S),
    )
    yield
    dist.destroy_process_group()


TRANSPORTS: Final = {
    "shared": Transport(_send_shared, _receive_shared),
    "queue": Transport(_send_queue, _receive_queue),
    "gloo": Transport(_send_gloo, _receive_gloo),
}
"""Every way by name."""
