"""The spans of a run as a file that Perfetto and ``chrome://tracing`` open (no torch).

A stage is a process there, with a row for what belongs to no block (waits, sending, checkpoints)
and a row for every block.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ppll.durable import write_whole
from ppll.errors import RunFolderError
from ppll.tracing.files import RankTrace, Span, Start, read_starts

__all__ = ["merge_timeline", "trace_events"]

_log = logging.getLogger(__name__)

_US: Final = 1e6


def merge_timeline(traces: Path, target: Path) -> None:
    """Write the timeline of every start of a run; nothing where nothing was recorded.

    A timeline that cannot be written is no reason to lose a run: it is logged.
    """
    try:
        if starts := read_starts(traces):
            _write(target, starts)
    except (OSError, RunFolderError) as error:
        _log.warning("no timeline: %s", error)


def _write(target: Path, starts: Sequence[Start]) -> None:
    events = list(trace_events(starts))
    # One event a line: it can be read by eye, and compared.
    lines = ",\n".join(json.dumps(event) for event in events)
    write_whole(target, f'{{"displayTimeUnit": "ms", "traceEvents": [\n{lines}\n]}}\n'.encode())


def trace_events(starts: Sequence[Start]) -> Iterator[dict[str, Any]]:
    """Events of the Trace Event Format, times in microseconds since the run's first span."""
    zero_s = min((s.began_s for s in starts), default=math.inf)
    named: set[tuple[int, int]] = set()
    for number, start in enumerate(starts):
        for trace in start.ranks:
            yield from _names(trace, named)
            for span in trace.spans:
                yield _event(trace, span, zero_s, number)


def _names(trace: RankTrace, named: set[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    rows = {0: "waits, sends, saves"} | {b + 1: f"block {b}" for b in trace.blocks}
    if (trace.rank, 0) not in named:
        yield _name("process_name", trace.rank, 0, trace.place)
    for row, name in rows.items():
        if (trace.rank, row) not in named:
            named.add((trace.rank, row))
            yield _name("thread_name", trace.rank, row, name)


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}


def _event(trace: RankTrace, span: Span, zero_s: float, start: int) -> dict[str, Any]:
    # A wait belongs to no step: what comes after it is not known yet.
    of_step = {} if span.name.endswith("wait") else {"step": span.step}
    return {
        "ph": "X",
        "name": span.name,
        "pid": trace.rank,
        "tid": span.block + 1,
        "ts": round(_US * (span.start_s - zero_s), 1),
        "dur": round(_US * (span.end_s - span.start_s), 1),
        "args": {**of_step, "start": start},
    }
