"""The stream on which a sender copies into slots of a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["SideStream"]


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
