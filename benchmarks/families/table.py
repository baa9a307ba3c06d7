"""The rows of ``docs/models.md`` from what was measured."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, Final

from benchmarks.families.networks import FAMILIES, Family

__all__ = ["PAGES", "put_into", "rows_of_page"]

PAGES: Final = tuple(dict.fromkeys(family.page for family in FAMILIES.values()))
"""Sections of the page."""
_FOLDER: Final = Path(__file__).parent
_HEAD: Final = (
    "backprop | four blocks | exits before it | kept bytes | ms a batch: backprop | four blocks | "
    "in two stages"
)


def rows_of_page(page: str) -> list[str]:
    """The table of one section of the page, a row a network."""
    measured = {part: _read(part) for part in ("accuracy", "memory", "timing")}
    head = [f"| | {_HEAD} |", "| --- |" + " --- |" * 7]
    chosen = {name: family for name, family in FAMILIES.items() if family.page == page}
    return head + [_row(name, family, measured) for name, family in chosen.items()]


def put_into(page: Path) -> None:
    """Replace the rows that the page has, each by that of the same network."""
    rows = [row for section in PAGES for row in rows_of_page(section)[2:]]
    lines = page.read_text(encoding="utf-8").split("\n")
    for row in rows:
        start = row[: row.index(" |", 1) + 2]
        lines[next(i for i, line in enumerate(lines) if line.startswith(start))] = row
    page.write_text("\n".join(lines), encoding="utf-8")


def _read(part: str) -> list[dict[str, Any]]:
    file = _FOLDER / f"{part}.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"] if file.exists() else []
    return rows


def _row(name: str, family: Family, measured: dict[str, list[dict[str, Any]]]) -> str:
    own = {part: [r for r in rows if r["family"] == name] for part, rows in measured.items()}
    cells = [name, *_outputs(family, own["accuracy"]), _kept(own["memory"]), *_times(own["timing"])]
    return f"| {' | '.join(cells)} |"


def _of(rows: list[dict[str, Any]], system: str, key: str) -> list[Any]:
    return [row[key] for row in rows if row["system"] == system]


def _outputs(family: Family, rows: list[dict[str, Any]]) -> list[str]:
    """Final output of both with its spread over seeds, and the mean of every other exit."""
    scale, digits, unit = (1, 2, "") if family.holds_text else (100, 1, " %")
    exits = _of(rows, "local", "exits")
    final = [[scale * seed[-1] for seed in _of(rows, s, "exits")] for s in ("backprop", "local")]
    if min(map(len, final)) < 2:
        return ["", "", ""]
    texts = [f"{statistics.mean(v):.{digits}f} ± {statistics.stdev(v):.{digits}f}" for v in final]
    before = [scale * statistics.mean(column) for column in list(zip(*exits, strict=True))[:-1]]
    return [f"{text}{unit}" for text in texts] + [", ".join(f"{v:.{digits}f}" for v in before)]


def _kept(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    (backprop,), (local,) = (_of(rows, s, "kept_bytes") for s in ("backprop", "local"))
    return f"{local / 2**20:.1f} of {backprop / 2**20:.1f} MiB, {local / backprop:.2f}"


def _times(rows: list[dict[str, Any]]) -> list[str]:
    """Medians, and medians of the ratios to backprop within a turn."""
    if not rows:
        return ["not taken"] * 3
    backprop = _of(rows, "backprop", "batch_ms")
    cells = [f"{statistics.median(backprop):.1f}"]
    for system in ("local", "local, two stages"):
        taken = _of(rows, system, "batch_ms")
        ratios = [mine / theirs for mine, theirs in zip(taken, backprop, strict=True)]
        cells.append(f"{statistics.median(taken):.1f}, {statistics.median(ratios):.2f}")
    return cells
