"""The rows of a study as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppll.studies.table import Row, Spread

__all__ = ["draw_picture"]

_FINAL: Final = "#1f4e79"
_AVERAGE: Final = "#d9822b"
_EXIT: Final = "#66707a"


def draw_picture(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy by method: the final output with its spread, exits as smaller marks.

    Args:
        rows: Those without a finished run have a name and no mark.
        path: The file to write; its ending says which format.

    Raises:
        OSError: It cannot be written.
    """
    figure = Figure(figsize=(8, 1.5 + 0.45 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    num_exits = max((len(row.exit_accuracy) for row in rows), default=1) - 1
    for index in range(num_exits):
        name = "_" if index else "exits, by block"  # a name with a bar has no place in the legend
        _mark(axes, [_exit(row, index) for row in rows], 0.2, f"${index}$", _EXIT, name)
    averages = [row.average_accuracy for row in rows]
    _mark(axes, averages, 0.2, "D", _AVERAGE, "all exits averaged")
    _mark(axes, [row.test_accuracy for row in rows], 0.0, "o", _FINAL, "final output", spread=True)
    several = len({row.recipe for row in rows}) > 1
    names = [f"{row.recipe}\n{row.name}" if several else row.name for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("test accuracy, %; bars: standard deviation over seeds")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=6, fontsize="small")
    figure.savefig(path, dpi=150)


def _exit(row: Row, index: int) -> Spread | None:
    """Of a block before the last."""
    return row.exit_accuracy[index] if index < len(row.exit_accuracy) - 1 else None


def _mark(
    axes: Axes,
    spreads: Sequence[Spread | None],
    below: float,
    marker: str,
    color: str,
    name: str,
    *,
    spread: bool = False,
) -> None:
    """Mark every row's mean, so far below its line, and its spread where that is wanted."""
    known = [(place + below, s) for place, s in enumerate(spreads) if s is not None]
    axes.errorbar(
        [100 * s.mean for _, s in known],
        [place for place, _ in known],
        xerr=[100 * (s.stdev or 0.0) for _, s in known] if spread else None,
        linestyle="none",
        marker=marker,
        markersize=7 if spread else 5,
        color=color,
        capsize=3,
        label=name,
    )
