"""A stretch of the timeline as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ppll.tracing.lanes import COLOURS, Lane, Lanes

__all__ = ["draw_timeline"]

_MS = 1e3
_TEXT_FROM = 0.02
"""A bar that takes less of the width has no number in it."""


def draw_timeline(lanes: Lanes, path: Path) -> None:
    """Draw a row a block; numbers in bars are steps.

    Args:
        lanes: What to draw.
        path: The file to write; its ending says which format.

    Raises:
        OSError: It cannot be written.
        ValueError: The ending is no format.
    """
    figure = Figure(figsize=(10, 1.6 + 0.42 * len(lanes.lanes)), layout="constrained")
    axes = figure.add_subplot()
    for row, lane in enumerate(lanes.lanes):
        _draw(axes, row, lane, lanes.seconds)
    axes.set_yticks(range(len(lanes.lanes)), [lane.label for lane in lanes.lanes])
    axes.set_ylim(len(lanes.lanes) - 0.5, -0.5)
    axes.set_xlim(0, _MS * lanes.seconds)
    axes.set_xlabel("milliseconds")
    used = {bar.name for lane in lanes.lanes for bar in lane.bars}
    keys = [Patch(color=c, label=name) for name, c in COLOURS.items() if name in used]
    figure.legend(handles=keys, loc="outside upper center", ncols=len(COLOURS), fontsize="small")
    figure.savefig(path, dpi=150)


def _draw(axes: Axes, row: int, lane: Lane, seconds: float) -> None:
    for bar in lane.bars:
        width = bar.end_s - bar.start_s
        colour = COLOURS[bar.name]
        axes.barh(row, _MS * width, 0.8, _MS * bar.start_s, color=colour, edgecolor="white")
        if width > _TEXT_FROM * seconds and bar.name in ("forward", "learn"):
            middle = _MS * (bar.start_s + width / 2)
            axes.text(middle, row, str(bar.step), ha="center", va="center", fontsize=7, color="w")
