"""What a rank of an emulated pipeline measured of itself."""

from __future__ import annotations

import os
import time
from array import array
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Footprint", "RankReport"]


@dataclass(frozen=True)
class Footprint:
    """What a process holds.

    Attributes:
        step: Messages that it had learned from.
        time_s: When, by the monotonic clock.
        resident_kib: Resident memory, shared slots included.
        private_kib: The part of it that is anonymous: the heap.
        num_descriptors: Open files and sockets.
    """

    step: int
    time_s: float
    resident_kib: int
    private_kib: int
    num_descriptors: int

    @classmethod
    def now(cls, step: int) -> Footprint:
        """This process's, from /proc."""
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        sizes = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
        return cls(
            step=step,
            time_s=time.monotonic(),
            resident_kib=int(sizes["VmRSS"].split()[0]),
            private_kib=int(sizes["RssAnon"].split()[0]),
            # Listing the folder opens it, which counts as one.
            num_descriptors=len(os.listdir("/proc/self/fd")) - 1,
        )


@dataclass
class RankReport:
    """What a rank measured.

    Attributes:
        times_s: When it had learned from each message, by the monotonic clock of the machine.
        footprints: What it held after ``footprint_steps``.
        busy_fraction: Share of the time in which it did not wait for a neighbour.
        activity_s: Seconds in every activity, by name.
    """

    times_s: array[float] = field(default_factory=lambda: array("d"))
    footprints: list[Footprint] = field(default_factory=list)
    busy_fraction: float = 0.0
    activity_s: dict[str, float] = field(default_factory=dict)
