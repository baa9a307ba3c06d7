"""Adding up with other replicas in the background, while the block computes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

from ppll.status import Activity, Monitor

__all__ = ["AddUp", "Adder"]

AddUp: TypeAlias = Callable[[Sequence[Tensor], str], list[Tensor]]
"""Sums of tensors over all replicas, of the same types and shapes, by the same name everywhere."""


class Adder:
    """Adds up in a thread of its own, in the order in which it is asked.

    Args:
        add_up: Blocks until all replicas have asked for the same.
        monitor: Is told that the rank waits.
    """

    def __init__(self, add_up: AddUp, monitor: Monitor) -> None:
        self._add_up = add_up
        self._monitor = monitor
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adding up")
        self._started: list[Future[None]] = []

    def start(
        self, tensors: Sequence[Tensor], what: str, take: Callable[[list[Tensor]], None]
    ) -> None:
        """Add up tensors, which stay as they are until ``take`` is called with the sums.

        ``what`` names them; see ``Line.add_up``. ``take`` is called in the other thread;
        ``finish`` returns after that.
        """
        self._started.append(self._thread.submit(self._work, tensors, what, take))

    def finish(self) -> None:
        """Wait until all that was started is over.

        Raises:
            ChannelClosed: A replica is gone.
            ProtocolError: A replica asks for something else.
        """
        started, self._started = self._started, []
        with self.waiting():
            for future in started:
                future.result()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The rank waits for other replicas inside, and then goes on with what it did."""
        was = self._monitor.status
        self._monitor.enter(Activity.AVERAGE, block=was.block)
        yield
        self._monitor.enter(was.activity, block=was.block)

    def close(self) -> None:
        """Start nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    @torch.no_grad()
    def _work(
        self, tensors: Sequence[Tensor], what: str, take: Callable[[list[Tensor]], None]
    ) -> None:
        take(self._add_up(tensors, what))
