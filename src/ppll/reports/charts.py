"""Lines, bars and timelines as inline SVG (no torch)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ppll.reports.markup import Markup, tag
from ppll.tracing.lanes import COLOURS, Bar, Lanes

__all__ = ["Series", "colour", "draw_lanes_svg", "legend", "line_chart"]

_WIDTH: Final = 360
_HEIGHT: Final = 210
_LEFT: Final = 44
_RIGHT: Final = 8
_TOP: Final = 8
_BOTTOM: Final = 26
_MAX_POINTS: Final = 300
_SMALLEST: Final = 1e-100
_ROW: Final = 26
_LANES_WIDTH: Final = 960
_LABELS: Final = 120


@dataclass(frozen=True)
class Series:
    """A line: points (x, y) with ascending x, all finite."""

    name: str
    colour: str
    points: tuple[tuple[float, float], ...]
    width: float = 1.5


def colour(index: int, num: int) -> str:
    """One of ``num`` colours on a scale from blue to red."""
    share = index / (num - 1) if num > 1 else 0.0
    return f"hsl({215 - 200 * share:.0f}, 62%, {46 - 6 * share:.0f}%)"


def legend(names: Sequence[tuple[str, str]]) -> Markup:
    """Names with their colours."""
    keys = [
        tag("span", tag("i", style=f"background:{shade}"), name, class_="key")
        for name, shade in names
    ]
    return tag("p", *keys, class_="legend")


def line_chart(title: str, series: Sequence[Series], *, percent: bool = False) -> Markup | None:
    """Lines over steps; none where no line has a point.

    Args:
        title: What is drawn.
        series: The lines; long ones are thinned by averaging neighbours.
        percent: Whether y is a share that is shown in percent.
    """
    lines = [Series(s.name, s.colour, _thinned(s.points), s.width) for s in series if s.points]
    if not lines:
        return None
    xs = [x for s in lines for x, _ in s.points]
    ys = [y for s in lines for _, y in s.points]
    frame = _Frame(min(0.0, *xs), max(xs), *_padded(min(ys), max(ys), is_share=percent))
    drawing = tag(
        "svg",
        tag("title", title),
        *_axes(frame, percent=percent),
        *(_line(frame, s) for s in lines),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
    )
    return tag("figure", tag("figcaption", title), drawing)


@dataclass(frozen=True)
class _Frame:
    """Where numbers are on the paper."""

    x_min: float
    x_max: float
    y_min: float
    y_max: float

    def x(self, value: float) -> float:
        """Units from the left."""
        share = (value - self.x_min) / ((self.x_max - self.x_min) or 1.0)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Units from the top."""
        share = (value - self.y_min) / ((self.y_max - self.y_min) or 1.0)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _padded(low: float, high: float, *, is_share: bool) -> tuple[float, float]:
    """Some air below and above; none where no share can be."""
    gap = (high - low) * 0.05 or abs(high) * 0.05 or 0.05
    if is_share:
        return max(low - gap, 0.0), min(high + gap, 1.0)
    return low - gap, high + gap


def _axes(frame: _Frame, *, percent: bool) -> Iterator[Markup]:
    for value in _ticks(frame.y_min, frame.y_max, 5):
        y = f"{frame.y(value):.1f}"
        shown = f"{100 * value:.4g} %" if percent else f"{value:.4g}"
        yield tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid")
        yield tag("text", shown, x=_LEFT - 5, y=y, dy="0.32em", text_anchor="end")
    for value in _ticks(frame.x_min, frame.x_max, 5):
        x = f"{frame.x(value):.1f}"
        yield tag("text", f"{value:,.6g}", x=x, y=_HEIGHT - 10, text_anchor="middle")


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from ``low`` to ``high``."""
    raw = (high - low) / most
    if raw < _SMALLEST:
        return [low]
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    first = math.ceil(low / step)
    return [step * i for i in range(first, math.floor(high / step) + 1)][: 4 * most]


def _line(frame: _Frame, series: Series) -> Markup:
    title = tag("title", series.name)
    if len(series.points) == 1:
        ((x, y),) = series.points
        place = {"cx": f"{frame.x(x):.1f}", "cy": f"{frame.y(y):.1f}", "r": 3}
        return tag("circle", title, fill=series.colour, **place)
    points = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in series.points)
    return tag(
        "polyline",
        title,
        points=points,
        fill="none",
        stroke=series.colour,
        stroke_width=series.width,
        stroke_linejoin="round",
    )


def _thinned(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    size = -(-len(points) // _MAX_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return tuple((g[-1][0], sum(y for _, y in g) / len(g)) for g in groups)


def draw_lanes_svg(lanes: Lanes) -> Markup:
    """A stretch of the timeline, a row a block; numbers in bars are steps."""
    height = _ROW * len(lanes.lanes) + 22
    rows: list[Markup] = []
    for row, lane in enumerate(lanes.lanes):
        middle = row * _ROW + _ROW / 2
        rows.append(
            tag("text", lane.label, x=_LABELS - 8, y=middle, dy="0.32em", text_anchor="end")
        )
        rows += [part for bar in lane.bars for part in _bar(bar, row, lanes.seconds)]
    for value in _ticks(0, 1e3 * lanes.seconds, 8):
        x = f"{_place(value / 1e3, lanes.seconds):.1f}"
        rows.append(tag("text", f"{value:.4g} ms", x=x, y=height - 6, text_anchor="middle"))
    drawing = tag(
        "svg",
        tag("title", "timeline"),
        *rows,
        viewBox=f"0 0 {_LANES_WIDTH} {height}",
        role="img",
        class_="lanes",
    )
    used = {bar.name for lane in lanes.lanes for bar in lane.bars}
    keys = [(name, shade) for name, shade in COLOURS.items() if name in used]
    return tag("div", legend(keys), tag("div", drawing, class_="scrolls"))


def _place(seconds: float, whole: float) -> float:
    return _LABELS + seconds / (whole or 1.0) * (_LANES_WIDTH - _LABELS - 30)


def _bar(bar: Bar, row: int, whole: float) -> Iterator[Markup]:
    left, right = _place(bar.start_s, whole), _place(bar.end_s, whole)
    note = f"{bar.name}, step {bar.step}: {1e3 * (bar.end_s - bar.start_s):.2f} ms"
    yield tag(
        "rect",
        tag("title", note),
        x=f"{left:.1f}",
        y=row * _ROW + 3,
        width=f"{max(0.5, right - left - 0.6):.1f}",
        height=_ROW - 6,
        fill=COLOURS[bar.name],
    )
    if bar.name in ("forward", "learn") and right - left > 9 * len(str(bar.step)):
        middle = row * _ROW + _ROW / 2
        where = {"x": f"{(left + right) / 2:.1f}", "y": middle, "dy": "0.32em"}
        yield tag("text", bar.step, text_anchor="middle", class_="on", **where)
