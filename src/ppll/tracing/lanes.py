"""A short stretch of a timeline as rows of bars, ready to be drawn (no torch)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ppll.tracing.files import RankTrace, Span, Start

__all__ = ["COLOURS", "Bar", "Lane", "Lanes", "draw_lanes"]

COLOURS: Final = {
    "make batch": "#c2679b",
    "forward": "#3b76af",
    "learn": "#e08a3c",
    "send": "#7b5aa6",
    "evaluation forward": "#7fb5d1",
    "evaluate": "#3f9b8f",
    "count": "#8d8271",
    "checkpoint": "#b5483a",
    "receive wait": "#d5d9de",
    "send wait": "#efe2b8",
    "average wait": "#c9e0cf",
}
"""What is drawn and how, in the order of a legend."""

_NUM_STEPS: Final = 6
_SHOWN_FROM: Final = 1e-3
"""Bars below this share of the stretch are left out: nobody sees them."""


@dataclass(frozen=True)
class Bar:
    """One span; seconds since the stretch began."""

    name: str
    step: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Lane:
    """What one block did; the first of a stage has its waits, too, and the last what it sends."""

    label: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Lanes:
    """All blocks over the same stretch of time, in order of stages."""

    seconds: float
    lanes: tuple[Lane, ...]


def draw_lanes(start: Start, num_steps: int = _NUM_STEPS) -> Lanes | None:
    """A stretch in which the last stage learns from so many batches; none where there is none.

    It lies near the middle of the first batches that were recorded, when the pipeline is full, and
    where nothing is evaluated, if there is such a place.
    """
    stretch = _stretch(start, num_steps)
    if stretch is None:
        return None
    began_s, ended_s = stretch
    rows = [
        Lane(_label(trace, block), tuple(_bars(trace, block, began_s, ended_s)))
        for trace in start.ranks
        for block in trace.blocks
    ]
    return Lanes(ended_s - began_s, tuple(rows))


def _stretch(start: Start, num_steps: int) -> tuple[float, float] | None:
    last = start.ranks[-1]
    learned = {s.step: s for s in last.spans if s.name == "learn" and s.block == last.blocks[-1]}
    run = _first_run(sorted(learned))
    if not run:
        return None
    evaluated = {span.step for span in last.spans if span.name == "evaluate"}
    steps = _calm_steps(run, num_steps, evaluated, last.capacity)
    began = [s.start_s for s in last.spans if s.name == "forward" and s.step == steps[0]]
    return min([*began, learned[steps[0]].start_s]), learned[steps[-1]].end_s


def _first_run(steps: list[int]) -> list[int]:
    """The first steps without a gap."""
    return [step for index, step in enumerate(steps) if step == steps[0] + index]


def _calm_steps(run: list[int], num_steps: int, evaluated: set[int], ahead: int) -> list[int]:
    """So many steps near the middle of a run; stages before are further ahead."""
    middle = max(0, (len(run) - num_steps) // 2)
    places = sorted(range(max(1, len(run) - num_steps + 1)), key=lambda at: abs(at - middle))
    calm = (at for at in places if not evaluated & set(run[at : at + num_steps + ahead]))
    first = next(calm, middle)
    return run[first : first + num_steps]


def _label(trace: RankTrace, block: int) -> str:
    return f"stage {trace.stage}, block {block}" if block == trace.blocks[0] else f"block {block}"


def _bars(trace: RankTrace, block: int, began_s: float, ended_s: float) -> Iterator[Bar]:
    for span in trace.spans:
        start_s, end_s = max(span.start_s, began_s), min(span.end_s, ended_s)
        is_visible = end_s - start_s > _SHOWN_FROM * (ended_s - began_s)
        if span.name in COLOURS and is_visible and _home(trace, span) == block:
            yield Bar(span.name, span.step, start_s - began_s, end_s - began_s)


def _home(trace: RankTrace, span: Span) -> int:
    """The block in whose lane a span is drawn."""
    if span.block >= 0:
        return span.block
    return trace.blocks[-1] if span.name.startswith("send") else trace.blocks[0]
