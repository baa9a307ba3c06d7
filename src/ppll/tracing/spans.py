"""What one rank did when: spans, written to ``traces/rank-N.jsonl`` (no torch).

A span is the time from one ``Monitor.enter`` to the next. Recording one packs 32 bytes into memory
that was set aside before; nothing is pickled, nothing grows and no file is touched but once a
window. Two windows are recorded, the first and the last batches of a start; seconds and channel
fill are summed over all of it. A file holds, a JSON object a line and for every start of the run:

- ``start``: rank, stage, blocks, channel capacity, and both clocks at one moment;
- ``span``: what, which block, which step, from when to when by the machine's monotonic clock;
- ``totals``: seconds and number of spans by what and block, how full the channels were.
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import getnode

from ppll.status import Activity, Status

__all__ = ["SPAN_NAMES", "Tracer", "Windows", "clock_name"]

SPAN_NAMES: Final = {
    Activity.START: "start",
    Activity.RECEIVE: "receive wait",
    Activity.FORWARD: "forward",
    Activity.SEND_WAIT: "send wait",
    Activity.SEND: "send",
    Activity.LEARN: "learn",
    Activity.EVALUATE: "evaluate",
    Activity.SAVE: "checkpoint",
    Activity.FINISH: "finish",
    Activity.AVERAGE: "average wait",
    Activity.EVALUATION_FORWARD: "evaluation forward",
    Activity.COUNT: "count",
    Activity.MAKE_BATCH: "make batch",
}
"""What an activity is called in traces."""

_RECORD: Final = struct.Struct("<ddqhh")
_MAX_SPANS: Final = 20_000
"""Of a window: 640 kB of memory, some 2 MB of file."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def clock_name() -> str:
    """A name that processes have in common whose monotonic clocks are the same one."""
    try:
        text = _BOOT_ID.read_text(encoding="utf-8")
    except OSError:
        text = str(getnode())
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Windows:
    """Which steps are recorded: the first and the last of a start.

    Attributes:
        first_to: Up to this step.
        last_from: And from this step on.
    """

    first_to: int
    last_from: int

    @classmethod
    def of(cls, num_recorded: int, start_step: int, num_steps: int) -> Windows:
        """The first and last so many of the steps from ``start_step`` to ``num_steps``."""
        return cls(start_step + num_recorded, num_steps - num_recorded + 1)

    def hold(self, step: int) -> bool:
        """Whether a step is recorded."""
        return step <= self.first_to or step >= self.last_from


class _Sum:
    """Seconds and number of one kind of span."""

    __slots__ = ("num", "seconds")

    def __init__(self) -> None:
        self.num = 0
        self.seconds = 0.0


class Tracer:
    """Records what one rank does.

    Args:
        path: The file; what earlier starts wrote stays.
        rank: Which rank.
        stage: Which stage it carries out.
        blocks: Indices of its blocks.
        windows: Steps of which every span is kept.
        capacity: Messages that its channels hold.
        place: Its stage and replica, for people.
        replica: Which of its stage's replicas it is.
        start: What tells this start of the run from all others, the same for all ranks.
    """

    def __init__(
        self,
        path: Path,
        *,
        rank: int,
        stage: int,
        blocks: Sequence[int],
        windows: Windows,
        capacity: int,
        place: str,
        start: str,
        replica: int = 0,
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self._windows = windows
        self._first_block = blocks[0]
        self._spans = bytearray(_RECORD.size * _MAX_SPANS)
        self._size = 0
        self._is_full = False
        self._is_over = False
        self._num_dropped = 0
        self._sums: dict[tuple[Activity, int], _Sum] = {}
        self._inbox_fills = [0] * (capacity + 1)
        self._outbox_fills = [0] * (capacity + 1)
        self._began_cpu_s = time.thread_time()
        self._cpu_s = 0.0
        # A killed process may have left half a line.
        self._file.write("\n")
        self._write(
            kind="start",
            start=start,
            rank=rank,
            stage=stage,
            place=place,
            replica=replica,
            blocks=list(blocks),
            capacity=capacity,
            clock=clock_name(),
            wall_s=time.time(),
            monotonic_s=time.monotonic(),
        )
        self._file.flush()

    def add(self, status: Status, end_s: float) -> None:
        """Take down what ``status`` says was done until ``end_s``; nothing after the stop."""
        if self._is_over:
            return
        activity, block = status.activity, status.block
        total = self._sums.get((activity, block))
        if total is None:
            total = self._sums[activity, block] = _Sum()
        total.num += 1
        total.seconds += end_s - status.since
        if activity is Activity.FORWARD and block == self._first_block:
            self._inbox_fills[min(status.inbox_fill, len(self._inbox_fills) - 1)] += 1
        elif activity is Activity.SEND:
            self._outbox_fills[min(status.outbox_fill, len(self._outbox_fills) - 1)] += 1
        if self._windows.hold(status.step):
            self._record(status, end_s)
        elif self._size or self._is_full:
            self._flush()
            self._is_full = False

    def finish(self) -> None:
        """Take the processor time of all that was taken down; what comes now is not counted.

        What was learned is hashed then, for which replicas that share parameters wait, too.
        """
        if not self._is_over:
            self._is_over = True
            self._cpu_s = time.thread_time() - self._began_cpu_s

    def _record(self, status: Status, end_s: float) -> None:
        if self._is_full:
            self._num_dropped += 1
            return
        _RECORD.pack_into(
            self._spans, self._size, status.since, end_s, status.step, status.activity, status.block
        )
        self._size += _RECORD.size
        if self._size == len(self._spans):
            self._flush()
            self._is_full = True

    def close(self) -> None:
        """Write out what is left, and the totals."""
        self.finish()
        self._flush()
        self._write(
            kind="totals",
            sums=[
                {"name": SPAN_NAMES[activity], "block": block, "num": s.num, "seconds": s.seconds}
                for (activity, block), s in self._sums.items()
            ],
            inbox_fills=self._inbox_fills,
            outbox_fills=self._outbox_fills,
            cpu_s=self._cpu_s,
            num_dropped=self._num_dropped,
        )
        self._file.close()

    def _flush(self) -> None:
        for record in _RECORD.iter_unpack(memoryview(self._spans)[: self._size]):
            start_s, end_s, step, activity, block = record
            self._file.write(
                f'{{"kind": "span", "name": "{SPAN_NAMES[Activity(activity)]}", "block": {block}, '
                f'"step": {step}, "start_s": {start_s:.6f}, "end_s": {end_s:.6f}}}\n'
            )
        self._size = 0
        self._file.flush()

    def _write(self, **row: Any) -> None:
        self._file.write(json.dumps(row) + "\n")
