"""When a rank's device had done its batches, for comparisons.

A batch has ended when its update is done. On a processor that is when the host comes by. A host
lines up the work of a GPU and goes on, many batches ahead, so its clock says nothing there: an
event stands in the line behind each update, and what it says is asked for at last. Nobody waits
for it, but once in a thousand batches.
"""

from __future__ import annotations

import json
import time
from array import array
from pathlib import Path
from typing import Final

import torch

from ppll.durable import write_whole

__all__ = ["BatchEnds", "read_ends"]

_MOST_EVENTS: Final = 1000
"""They are asked after so many at the latest, so that long runs do not collect them."""


class BatchEnds:
    """Takes down when batches end.

    Args:
        device: Where their work is done; of a GPU, in the stream that is the current one.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times_s = array("d")
        self._events: list[torch.cuda.Event] = []

    def note(self) -> None:
        """All work of a batch has been handed to the device."""
        if self._device.type != "cuda":
            self._times_s.append(time.monotonic())
            return
        self._events.append(_recorded())
        if len(self._events) == _MOST_EVENTS:
            self._settle()

    def times_s(self) -> array[float]:
        """When every batch had ended, in seconds of the machine's monotonic clock.

        Waits until they all have.
        """
        if self._events:
            self._settle()
        return self._times_s

    def _settle(self) -> None:
        """Wait for the device, and ask how long ago each event was."""
        torch.cuda.synchronize(self._device)
        now = _recorded()
        now.synchronize()
        now_s = time.monotonic()
        self._times_s.extend(now_s - event.elapsed_time(now) / 1e3 for event in self._events)
        self._events.clear()

    def write(self, path: Path, start_step: int) -> None:
        """Write the times for ``read_ends``, given the training batches before the first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"first_step": start_step + 1, "ends_s": self.times_s().tolist()}
        write_whole(path, json.dumps(content).encode())


def _recorded() -> torch.cuda.Event:
    """An event behind all that is in line."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def read_ends(path: Path) -> dict[int, float]:
    """When every batch of a rank's last start had ended, in seconds, by step from 1."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return dict(enumerate(content["ends_s"], content["first_step"]))
