"""What is known of a running rank: one page of memory that it writes and the launcher reads.

Writing the page costs a microsecond and no system call, so a worker says at every turn what it is
doing. The launcher reads pages for the live view and to find out who stands still.
"""

from __future__ import annotations

import enum
import mmap
import os
import resource
import struct
import sys
import tempfile
import time
import zlib
from typing import Final, NamedTuple, Protocol

__all__ = ["Activity", "Monitor", "Recorder", "Status", "StatusPage", "resident_peak_bytes"]


def resident_peak_bytes() -> int:
    """Most resident memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Activity(enum.IntEnum):
    """What a rank is doing."""

    START = 0
    """Building or loading its blocks, or connecting."""
    RECEIVE = 1
    """Waiting for the stage before it (or, the first stage, for data)."""
    FORWARD = 2
    SEND_WAIT = 3
    """Waiting for the next stage to free a slot."""
    SEND = 4
    """Copying features into the channel."""
    LEARN = 5
    EVALUATE = 6
    SAVE = 7
    FINISH = 8
    """Everything has passed."""
    AVERAGE = 9
    """Adding up with the other replicas of its stage, or waiting for them."""
    EVALUATION_FORWARD = 10
    """A block's forward in an evaluation, whose batches may be larger."""
    COUNT = 11
    """Reading what blocks have counted: on a GPU that takes until all is done that it was given."""
    MAKE_BATCH = 12
    """Making a batch where no thread makes it ahead."""

    @property
    def waits(self) -> bool:
        """Whether the rank is waiting for another one."""
        return self in _WAITS


_WAITS: Final = frozenset({Activity.RECEIVE, Activity.SEND_WAIT, Activity.AVERAGE})


class Status(NamedTuple):
    """A reading of a rank's page.

    Attributes:
        activity: What the rank is doing.
        since: When it began that, in seconds of the machine's monotonic clock.
        block: Index of the block at work; -1 where no block is.
        step: Training batches that reached the rank.
        epoch: Epoch of the last batch.
        samples: Training samples that the rank has finished.
        inbox_fill: Messages in the channel that it reads from.
        outbox_fill: Messages in the channel that it writes to.
        loss: Mean training loss of the rank's last block when it was last written; NaN before.
        accuracy: Its mean training accuracy, 0 to 1; NaN before.
        started_s: When its first message came, by the same clock; 0 before.
        waited_s: Seconds from then to ``since`` in which it waited for another rank.
        memory_bytes: Most memory of its process when it was last looked at; 0 before.
        tested: Samples to evaluate that have reached it since it last learned, of all splits.
    """

    activity: Activity
    since: float
    block: int
    step: int
    epoch: int
    samples: int
    inbox_fill: int
    outbox_fill: int
    loss: float
    accuracy: float
    started_s: float = 0.0
    waited_s: float = 0.0
    memory_bytes: int = 0
    tested: int = 0

    @property
    def busy(self) -> float | None:
        """Share of the time up to ``since`` in which it did not wait; none before it began."""
        elapsed_s = self.since - self.started_s
        return 1 - self.waited_s / elapsed_s if self.started_s and elapsed_s > 0 else None


def _beginning() -> Status:
    """The status of a rank that has not said anything yet."""
    nan = float("nan")
    return Status(Activity.START, time.monotonic(), -1, 0, 0, 0, 0, 0, nan, nan)


_LAYOUT: Final = struct.Struct("<idiqiqiiddddqq")
_CHECKSUM: Final = struct.Struct("<I")
_SIZE: Final = _LAYOUT.size + _CHECKSUM.size
_MAX_READS: Final = 100


class StatusPage:
    """A page of shared memory that holds one ``Status``.

    Args:
        descriptor: Memory to map, as another process's ``descriptor`` gave it; new memory
            without.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        is_new = descriptor is None
        self.descriptor = _anonymous_memory(mmap.PAGESIZE) if descriptor is None else descriptor
        self._memory = mmap.mmap(self.descriptor, mmap.PAGESIZE)
        self._last = _beginning()
        if is_new:
            self.write(self._last)

    def write(self, status: Status) -> None:
        """Replace what the page says."""
        content = _LAYOUT.pack(*status)
        self._memory[:_SIZE] = content + _CHECKSUM.pack(zlib.crc32(content))

    def read(self) -> Status:
        """What the page says now.

        The writer does not wait for readers, so a reading may mix two statuses; the checksum tells,
        and it is read again. A writer that was stopped half-way leaves what was read before.
        """
        for _ in range(_MAX_READS):
            page = self._memory[:_SIZE]
            content = page[: _LAYOUT.size]
            if _CHECKSUM.unpack(page[_LAYOUT.size :])[0] == zlib.crc32(content):
                activity, *rest = _LAYOUT.unpack(content)
                self._last = Status(Activity(activity), *rest)
                break
        return self._last

    def close(self) -> None:
        """Unmap the page."""
        self._memory.close()
        os.close(self.descriptor)


def _anonymous_memory(num_bytes: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("ppll-status")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, num_bytes)
    return descriptor


class Recorder(Protocol):
    """Is told of everything that a rank has done."""

    def add(self, status: Status, end_s: float) -> None:
        """``status`` was so from its ``since`` to ``end_s``."""
        ...

    def finish(self) -> None:
        """Everything has passed; may be said more than once."""
        ...


class Monitor:
    """Keeps a rank's page up to date and adds up the seconds of every activity.

    Args:
        page: Where the launcher reads; a page of its own without.
    """

    def __init__(self, page: StatusPage | None = None) -> None:
        self.page = page or StatusPage()
        self.seconds = dict.fromkeys(Activity, 0.0)
        self.num_samples = 0
        self.started_s = 0.0
        self.recorder: Recorder | None = None
        self._waited_s = 0.0
        self.training_peak_bytes = 0
        """Most memory of the rank before it first saved anything."""
        self._status = _beginning()
        self.page.write(self._status)

    def enter(self, activity: Activity, *, block: int = -1, step: int | None = None) -> None:
        """Say what the rank does from now on."""
        now = time.monotonic()
        old = self._status
        self.seconds[old.activity] += now - old.since
        if old.activity in _WAITS:
            self._waited_s += now - old.since
        if self.recorder is not None:
            self.recorder.add(old, now)
            if activity is Activity.FINISH:
                self.recorder.finish()
        self._status = old._replace(
            activity=activity,
            since=now,
            block=block,
            step=old.step if step is None else step,
            samples=self.num_samples,
            waited_s=self._waited_s,
        )
        self.page.write(self._status)

    def note(self, **fields: int | float) -> None:
        """Change other fields of the page; it shows them from the next ``enter`` on."""
        self._status = self._status._replace(**fields)  # type: ignore[arg-type]

    def note_peak(self, num_bytes: int) -> None:
        """Take note of the rank's memory so far, before it saves for the first time."""
        self.training_peak_bytes = self.training_peak_bytes or num_bytes

    @property
    def status(self) -> Status:
        """What the page says."""
        return self._status

    def start_clock(self) -> None:
        """Forget the seconds so far: what came before the first batch is not training."""
        self.started_s = time.monotonic()
        self._status = self._status._replace(since=self.started_s, started_s=self.started_s)
        self._waited_s = 0.0
        self.seconds = dict.fromkeys(Activity, 0.0)

    @property
    def elapsed_s(self) -> float:
        """Seconds since ``start_clock``, up to the last change of activity."""
        return sum(self.seconds.values())

    def busy_fraction(self) -> float:
        """Share of those seconds in which the rank did not wait for another one."""
        return 1 - self._waited_s / self.elapsed_s if self.elapsed_s else 0.0
