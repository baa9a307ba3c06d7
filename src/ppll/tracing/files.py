"""The spans of all ranks, read back and put on one clock (no torch).

Processes of one host share a monotonic clock. Clocks of several hosts are compared through the
wall clock that every rank wrote down beside its own; what is left of the difference shows where
features arrive before they were sent, and is taken out.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import pydantic
from pydantic import Field

from ppll.errors import RunFolderError
from ppll.json_lines import read_rows
from ppll.mesh import crossings
from ppll.run_folder import RunFolder
from ppll.status import Activity
from ppll.tracing.spans import SPAN_NAMES

__all__ = ["RankTrace", "Span", "Start", "Sum", "Totals", "aligned", "newest_start", "read_starts"]

_LEARN: Final = SPAN_NAMES[Activity.LEARN]
_SENT: Final = (SPAN_NAMES[Activity.SEND], SPAN_NAMES[Activity.EVALUATE])
_USED: Final = (SPAN_NAMES[Activity.FORWARD], SPAN_NAMES[Activity.EVALUATION_FORWARD])

_Index = Annotated[int, Field(ge=0, lt=2**15)]
_Block = Annotated[int, Field(ge=-1, lt=2**15)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Seconds = Annotated[float, Field(ge=0, lt=1e12, allow_inf_nan=False)]
_Fills = Annotated[tuple[_Count, ...], Field(max_length=1025)]
_Name = Literal[
    "start",
    "receive wait",
    "forward",
    "send wait",
    "send",
    "learn",
    "average wait",
    "evaluate",
    "evaluation forward",
    "count",
    "make batch",
    "checkpoint",
]
_CONFIG: Final = pydantic.ConfigDict(frozen=True, extra="ignore")


class Span(pydantic.BaseModel):
    """What a rank did from ``start_s`` to ``end_s``; ``block`` is -1 where none was at work."""

    model_config = _CONFIG
    name: _Name
    block: _Block
    step: _Count
    start_s: _Seconds
    end_s: _Seconds


class Sum(pydantic.BaseModel):
    """Number and seconds of all spans of one kind."""

    model_config = _CONFIG
    name: _Name
    block: _Block
    num: _Count
    seconds: _Seconds


class Totals(pydantic.BaseModel):
    """What a rank summed up over a whole start.

    Attributes:
        sums: By name and block.
        inbox_fills: How often its inbox held so many messages, by number; of training only.
        outbox_fills: How often its outbox held so many, marks among them.
        cpu_s: Processor seconds of the thread that worked.
        num_dropped: Spans for which there was no room.
    """

    model_config = _CONFIG
    sums: tuple[Sum, ...]
    inbox_fills: _Fills
    outbox_fills: _Fills
    cpu_s: _Seconds
    num_dropped: _Count


class _Header(pydantic.BaseModel):
    model_config = _CONFIG
    start: Annotated[str, Field(max_length=100)]
    rank: _Index
    stage: _Index | None = None
    """Not in files of older versions; first replicas are numbered like their stages."""
    place: Annotated[str, Field(max_length=100)]
    replica: _Index = 0
    blocks: Annotated[tuple[_Index, ...], Field(min_length=1)]
    capacity: _Count
    clock: Annotated[str, Field(max_length=100)]
    wall_s: _Seconds
    monotonic_s: _Seconds


@dataclass(frozen=True)
class RankTrace:
    """What one rank wrote down in one start.

    Attributes:
        rank: Which.
        stage: Which one it carried out.
        blocks: Indices of its blocks.
        capacity: Messages that its channels held.
        place: Its stage and replica, for people.
        clock: Name of the clock that its spans are told by.
        offset_s: What brings that clock to the wall clock.
        spans: In order.
        totals: None where it was killed.
        replica: Which of its stage's replicas it is.
    """

    rank: int
    stage: int
    blocks: tuple[int, ...]
    capacity: int
    place: str
    clock: str
    offset_s: float
    spans: tuple[Span, ...]
    totals: Totals | None
    replica: int = 0


@dataclass(frozen=True)
class Start:
    """All ranks of one start of a run, in order, their spans in seconds of the wall clock.

    Attributes:
        ranks: Those that are looked at.
        others: Further replicas, which did the same work beside them.
        index: Which start it is of those that left traces.
        newest: Which is the newest of them.
    """

    ranks: tuple[RankTrace, ...]
    others: tuple[RankTrace, ...] = ()
    index: int = 0
    newest: int = 0

    @property
    def began_s(self) -> float:
        """When the first span began; infinite where there is none."""
        return min((s.start_s for r in self.ranks for s in r.spans), default=math.inf)


def read_starts(folder: Path) -> list[Start]:
    """Every start of a run, the oldest first.

    Args:
        folder: Holds ``rank-N.jsonl``.

    Raises:
        RunFolderError: A file cannot be read.
    """
    starts: dict[str, list[tuple[_Header, RankTrace]]] = {}
    for path in sorted(folder.glob("rank-*.jsonl")):
        try:
            for header, trace in _parts(read_rows(path)):
                starts.setdefault(header.start, []).append((header, trace))
        except OSError as error:
            raise RunFolderError(f"cannot read {path}: {error.strerror}.") from None
    ordered = sorted(starts.values(), key=lambda parts: min(h.wall_s for h, _ in parts))
    return [Start(aligned([trace for _, trace in parts])) for parts in ordered]


def newest_start(folder: RunFolder) -> Start:
    """The last start of a run that learned from a batch, or the last one where none did.

    Of each stage the first replica is looked at that left traces: the others do the same work.

    Raises:
        RunFolderError: Nothing was recorded, or a file cannot be read.
    """
    starts = read_starts(folder.traces)
    if not starts:
        raise RunFolderError(f"{folder.path} has no traces: {_why_none(folder)}.")
    newest = len(starts) - 1
    index = max((i for i, start in enumerate(starts) if _has_learned(start)), default=newest)
    ranks = sorted(starts[index].ranks, key=lambda rank: (rank.blocks, rank.replica))
    replicas = [tuple(group) for _, group in itertools.groupby(ranks, lambda rank: rank.blocks)]
    others = tuple(rank for group in replicas for rank in group[1:])
    return Start(tuple(group[0] for group in replicas), others, index, newest)


def _has_learned(start: Start) -> bool:
    """Whether any rank learned from a batch; spans that were dropped are in the sums."""
    summed = {part.name for rank in start.ranks if rank.totals for part in rank.totals.sums}
    return _LEARN in summed or any(s.name == _LEARN for rank in start.ranks for s in rank.spans)


def _why_none(folder: RunFolder) -> str:
    if not folder.read_recipe().track.trace_steps:
        return "train with track.trace_steps above 0 (100 by default)"
    return f"none of its processes has begun to train; what they printed is in {folder.logs}"


@dataclass
class _Collected:
    """A start of one rank while its lines are read."""

    header: _Header
    spans: list[Span] = field(default_factory=list)
    totals: Totals | None = None

    def finish(self) -> tuple[_Header, RankTrace]:
        header = self.header
        trace = RankTrace(
            header.rank,
            header.rank if header.stage is None else header.stage,
            header.blocks,
            header.capacity,
            header.place,
            header.clock,
            header.wall_s - header.monotonic_s,
            tuple(self.spans),
            self.totals,
            header.replica,
        )
        return header, trace


def _parts(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[_Header, RankTrace]]:
    """The starts of one file; a line that is no line of a trace is passed over."""
    current: _Collected | None = None
    for row in rows:
        kind = row.get("kind")
        try:
            if kind == "start":
                if current is not None:
                    yield current.finish()
                current = _Collected(_Header.model_validate(row))
            elif current is not None and kind == "span":
                current.spans.append(Span.model_validate(row))
            elif current is not None and kind == "totals":
                current.totals = Totals.model_validate(row)
        except pydantic.ValidationError:
            continue
    if current is not None:
        yield current.finish()


def aligned(traces: Sequence[RankTrace]) -> tuple[RankTrace, ...]:
    """Ranks in order with their spans on the wall clock, no message used before it was sent."""
    offsets = _common_offsets(traces)
    ordered = sorted(traces, key=lambda trace: trace.rank)
    ranks = [_shifted(trace, offsets[trace.clock]) for trace in ordered]
    delays = _delays(ranks)
    return tuple(_shifted(rank, delays[rank.clock]) for rank in ranks)


def _delays(ranks: Sequence[RankTrace]) -> dict[str, float]:
    """The least seconds to add to each clock so that features arrive after they were sent.

    A clock must be at least so far behind the one before it: the longest paths of these demands,
    by the method of Bellman and Ford.
    """
    delays = dict.fromkeys((rank.clock for rank in ranks), 0.0)
    demands = [
        (before.clock, after.clock, _earliness_s(before, after))
        for before, after in _neighbours(ranks)
        if before.clock != after.clock
    ]
    for _ in delays:
        for before_clock, after_clock, early_s in demands:
            least_s = delays[before_clock] + early_s
            delays[after_clock] = max(delays[after_clock], least_s)
    return delays


def _neighbours(ranks: Sequence[RankTrace]) -> Iterator[tuple[RankTrace, RankTrace]]:
    """Which ranks send features to which: of two stages, those whose samples overlap."""
    stages: dict[int, list[RankTrace]] = {}
    for rank in sorted(ranks, key=lambda r: (r.blocks[0], r.replica)):
        stages.setdefault(rank.blocks[0], []).append(rank)
    for before, after in itertools.pairwise(stages.values()):
        for i, j in crossings(len(before), len(after)):
            yield before[i], after[j]


def _common_offsets(traces: Iterable[RankTrace]) -> dict[str, float]:
    """One offset a clock: what was read at different moments differs by microseconds."""
    found: dict[str, list[float]] = {}
    for trace in traces:
        found.setdefault(trace.clock, []).append(trace.offset_s)
    return {clock: statistics.median(offsets) for clock, offsets in found.items()}


def _shifted(trace: RankTrace, by_s: float) -> RankTrace:
    spans = tuple(
        s.model_copy(update={"start_s": s.start_s + by_s, "end_s": s.end_s + by_s})
        for s in trace.spans
    )
    return replace(trace, spans=spans)


def _earliness_s(sender: RankTrace, receiver: RankTrace) -> float:
    """By how much a message seems to have been used before it was sent; below 0 if none was."""
    sent = _first_of_steps((s for s in sender.spans if s.block < 0), _SENT)
    used = _first_of_steps(receiver.spans, _USED)
    return max((sent[step] - used[step] for step in sent.keys() & used.keys()), default=-math.inf)


def _first_of_steps(spans: Iterable[Span], names: tuple[str, ...]) -> dict[int, float]:
    found: dict[int, float] = {}
    for span in spans:
        if span.name in names:
            found.setdefault(span.step, span.start_s)
    return found
