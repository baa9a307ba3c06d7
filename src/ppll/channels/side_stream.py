"""The stream on which a sender copies into slots of a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Side", "SideCopies", "SideStream"]


class Side(Protocol):
    """A stream beside the caller's, which copies."""

    @property
    def stream(self) -> Any:
        """On which events are recorded and waited for."""
        ...

    def behind_caller(self) -> Any:
        """A context in which work goes to the side stream, behind what the caller has queued."""
        ...

    def hold_caller(self) -> None:
        """Let what the caller queues from now on wait for the side stream."""

    def is_over(self) -> bool:
        """Whether everything on it is done."""
        ...


class SideStream:
    """A stream that copies from one GPU to another, or the same.

    A copy between two GPUs runs on the current stream of the one and is waited for by that of the
    other, so there are two; events are those of the other.

    Args:
        source: Where tensors come from.
        target: Where they go.
    """

    def __init__(self, source: torch.device, target: torch.device) -> None:
        self._device = source
        self._copying = torch.cuda.Stream(source)  # type: ignore[no-untyped-call]
        self.stream = self._copying if source == target else torch.cuda.Stream(target)  # type: ignore[no-untyped-call]
        self._sent_on = torch.cuda.current_stream(source)

    @contextmanager
    def behind_caller(self) -> Iterator[None]:
        """A context in which work goes to the side stream, behind what the caller has queued."""
        self._sent_on = torch.cuda.current_stream(self._device)
        self._copying.wait_stream(self._sent_on)
        with torch.cuda.stream(self.stream), torch.cuda.stream(self._copying):
            yield

    def hold_caller(self) -> None:
        """Let the caller's stream wait, and the one that it was on when it sent."""
        for stream in {self._sent_on, torch.cuda.current_stream(self._device)}:
            stream.wait_stream(self._copying)

    def is_over(self) -> bool:
        """Whether everything on it is done."""
        return self._copying.query() and self.stream.query()


class SideCopies:
    """Copies of a caller's tensors, some time, on a side stream.

    Args:
        side: The stream.
    """

    def __init__(self, side: Side) -> None:
        self._side = side
        self._copied: Mapping[str, Tensor] | None = None

    @contextmanager
    def of(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """A context in which copies of tensors are queued; they are kept until ``flush``."""
        self.flush()
        self._copied = tensors
        with self._side.behind_caller():
            yield

    def flush(self) -> None:
        """What the caller queues from now on comes after the copies, so it may change the source.

        Sources are kept until then instead of told to the allocator (``record_stream``): they go
        back to it in the order of streams, so memory does not grow with how far the host is ahead.
        """
        if self._copied is not None:
            self._side.hold_caller()
            self._copied = None

    def forget(self) -> None:
        """Let go of what was copied: nobody reads the copies any more."""
        self._copied = None
