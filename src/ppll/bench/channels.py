"""What a message takes from one process to another: PPLL's channel beside what there is otherwise.

Two things are measured of every transport (``ppll.bench.transports``), with the same number of
messages in flight at most:

- **alone**: nothing else is in flight and the receiver waits. The time is from the call of ``send``
  to where the receiver has read the message's last byte; both clocks are the machine's monotonic
  one, so it is one way, no half of a round trip. The sender pauses before it sends, so the receiver
  is asleep, as one is that waits for a block: waking it up is in the figure.
- **streaming**: the sender sends as fast as it may, and the receiver gives a message back as soon
  as it has read its last byte. The time is that from message to message at the receiver.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import secrets
import signal
import statistics
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Final, cast

import torch

from ppll.bench.transports import TIMEOUT_S, TRANSPORTS, Route, Transport
from ppll.channels.shared import MAX_CAPACITY
from ppll.errors import ChannelError, ChannelTimeout, RecipeError, unknown_name
from ppll.fork_server import warm_up

__all__ = ["SIZES", "ChannelRow", "measure_channels"]

SIZES: Final = (4 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20)
"""Bytes of the messages that are measured where nobody asks for others."""

_ALONE: Final = 100
_PAUSE_S: Final = 0.0005
_STREAMED_BYTES: Final = 1 << 29
_LEAST_STREAMED: Final = 40
_MOST_STREAMED: Final = 2000
_GRACE_S: Final = 1.0


@dataclass(frozen=True)
class ChannelRow:
    """What messages of one size took over one transport, a value a repeat.

    Attributes:
        transport: Its name.
        num_bytes: Size of a message.
        alone_s: From ``send`` to where the receiver has it, with nothing else in flight.
        streaming_s: From message to message.
    """

    transport: str
    num_bytes: int
    alone_s: tuple[float, ...]
    streaming_s: tuple[float, ...]

    @property
    def microseconds(self) -> float:
        """Of a message alone, one way: the median."""
        return 1e6 * statistics.median(self.alone_s)

    @property
    def microseconds_per_message(self) -> float:
        """Of a message in a stream: the median."""
        return 1e6 * statistics.median(self.streaming_s)

    @property
    def gigabytes_per_second(self) -> float:
        """Of a stream: the median."""
        return statistics.median(self._rates())

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: medians, and beside each the least and the most of all repeats."""
        values = {
            "microseconds": [1e6 * seconds for seconds in self.alone_s],
            "microseconds_per_message": [1e6 * seconds for seconds in self.streaming_s],
            "gigabytes_per_second": self._rates(),
        }
        tree: dict[str, Any] = {"transport": self.transport, "bytes": self.num_bytes}
        for name, row in values.items():
            tree |= {name: getattr(self, name), f"{name}_min": min(row), f"{name}_max": max(row)}
        return tree

    def _rates(self) -> list[float]:
        return [self.num_bytes / seconds / 1e9 for seconds in self.streaming_s]


def measure_channels(
    sizes: Sequence[int] = SIZES,
    *,
    transports: Sequence[str] = tuple(TRANSPORTS),
    capacity: int = 8,
    repeats: int = 3,
    seen: Callable[[ChannelRow], None] = lambda _: None,
) -> list[ChannelRow]:
    """Measure every transport at every size, one after the other.

    Args:
        sizes: Bytes of a message.
        transports: Some of ``ppll.bench.transports.TRANSPORTS``.
        capacity: Messages in flight at most.
        repeats: How often each is measured, in new processes.
        seen: Is shown every row as it comes.

    Raises:
        RecipeError: A transport is unknown, or a number cannot be.
        ChannelError: A process failed, or took too long; none is left.
    """
    for transport in transports:
        if transport not in TRANSPORTS:
            raise RecipeError(unknown_name("transport", transport, TRANSPORTS))
    if min(sizes, default=0) < 1 or not 1 <= capacity <= MAX_CAPACITY or repeats < 1:
        raise RecipeError(
            f"cannot measure sizes {list(sizes)} with capacity {capacity} and {repeats} repeat(s): "
            f"give sizes of 1 byte or more, a capacity of 1 to {MAX_CAPACITY}, 1 repeat or more."
        )
    rows = []
    for size in sizes:
        for transport in transports:
            times = [_measure(TRANSPORTS[transport], size, capacity) for _ in range(repeats)]
            alone_s, streaming_s = zip(*times, strict=True)
            rows.append(ChannelRow(transport, size, alone_s, streaming_s))
            seen(rows[-1])
    return rows


def _measure(transport: Transport, num_bytes: int, capacity: int) -> tuple[float, float]:
    """Seconds of a message alone and of one in a stream: medians of one pair of processes."""
    streamed = max(_LEAST_STREAMED, min(_MOST_STREAMED, _STREAMED_BYTES // num_bytes))
    num_messages = _ALONE + 2 * capacity + streamed
    sent, received = _run_both(transport, num_bytes, num_messages, capacity)
    alone = [end - start for start, end in zip(sent, received[:_ALONE], strict=True)]
    # The first messages of the stream fill the channel and touch its slots.
    steady = received[-streamed - 1 :]
    return statistics.median(alone), (steady[-1] - steady[0]) / streamed


def _run_both(
    transport: Transport, num_bytes: int, num_messages: int, capacity: int
) -> list[array[float]]:
    """When messages were sent that travel alone, and when each was received."""
    warm_up()
    context = multiprocessing.get_context("forkserver")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ppll-")))
        queue = context.Queue(capacity)
        stack.callback(queue.close)
        secret = secrets.token_bytes(32)
        route = Route(num_bytes, num_messages, capacity, folder, secret, queue)
        pace, paced = context.Pipe()
        ends = []
        for run, pacing in ((_send_all, paced), (_receive_all, pace)):
            ours, theirs = context.Pipe(duplex=False)
            stack.callback(ours.close)
            args = (run, transport, route, pacing, theirs)
            process = context.Process(target=_run, args=args, daemon=True)
            process.start()
            stack.callback(_end, process)
            pacing.close()
            theirs.close()
            ends.append(ours)
        return _gather(ends)


def _end(process: ForkServerProcess) -> None:
    process.join(1)
    if process.is_alive():
        process.kill()
        process.join()
    process.close()


def _gather(ends: list[Connection]) -> list[array[float]]:
    """Every process's times, in order."""
    deadline = time.monotonic() + 2 * TIMEOUT_S
    times: dict[int, array[float]] = {}
    failures: dict[int, str] = {}
    while waiting := [e for i, e in enumerate(ends) if i not in times.keys() | failures.keys()]:
        spoken = multiprocessing.connection.wait(waiting, max(0.0, deadline - time.monotonic()))
        if not spoken:
            break
        for end in cast(list[Connection], spoken):
            news = _news(end)
            if isinstance(news, str):
                failures[ends.index(end)] = news
                # The other may have failed before, or fail in its wake.
                deadline = min(deadline, time.monotonic() + _GRACE_S)
            else:
                times[ends.index(end)] = news
    if failures:
        names = ("sending", "receiving")
        told = [f"the {names[index]} process failed: {text}" for index, text in failures.items()]
        raise ChannelError("; ".join(told))
    if len(times) < len(ends):
        raise ChannelTimeout(f"a transport was not measured within {2 * TIMEOUT_S:g} s.")
    return [times[index] for index in range(len(ends))]


def _news(end: Connection) -> array[float] | str:
    """A process's times, or how it failed."""
    try:
        return cast("array[float] | str", end.recv())
    except EOFError:
        return "it died"


_Side = Callable[[Transport, Route, Connection], "array[float]"]


def _run(
    side: _Side, transport: Transport, route: Route, pacing: Connection, result: Connection
) -> None:
    """Entry point of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # belongs to the parent
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # gloo talks
    torch.set_num_threads(1)
    try:
        result.send(side(transport, route, pacing))
    except Exception as error:
        result.send(f"{type(error).__name__}: {error}")


def _send_all(transport: Transport, route: Route, pacing: Connection) -> array[float]:
    """When each message was sent that travels alone."""
    times = array("d")
    with transport.sending(route) as send:
        for _ in range(_ALONE):
            _await(pacing)
            time.sleep(_PAUSE_S)
            times.append(time.monotonic())
            send()
        _await(pacing)
        for _ in range(route.num_messages - _ALONE):
            send()
        _await(pacing)  # with this process would go what the receiver has not got
    return times


def _receive_all(transport: Transport, route: Route, pacing: Connection) -> array[float]:
    """When each message had been read."""
    times = array("d")
    with transport.receiving(route) as receive:
        for number in range(route.num_messages):
            if number <= _ALONE:
                pacing.send_bytes(b".")
            receive()
            times.append(time.monotonic())
        pacing.send_bytes(b".")
    return times


def _await(pacing: Connection) -> None:
    """Wait until the receiver is about to receive, or has received all."""
    if not pacing.poll(TIMEOUT_S):
        raise ChannelTimeout(f"the receiver has been silent for {TIMEOUT_S:g} s.")
    pacing.recv_bytes()
