"""Rows as a terminal shows them: text is folded where it has to be, nothing is cut (no torch)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

__all__ = ["print_table"]

_GAP: Final = 2


def print_table(
    console: Console,
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Collection[str] = (),
    title: str | None = None,
) -> None:
    """Print rows below the names of their columns, no wider than the console if that can be.

    Args:
        console: Where to.
        names: Of the columns.
        rows: A text a column.
        left: Columns of text, which is folded between words; others hold figures, which are not.
        title: A line above all.
    """
    cells = [[row[index] for row in rows] for index in range(len(names))]
    columns = list(zip(names, cells, strict=True))
    least = [_least(name, texts, folds=name in left) for name, texts in columns]
    most = [_longest(_lines([name, *texts])) for name, texts in columns]
    num_gaps = len(names) - 1
    gap = _GAP if sum(least) + _GAP * num_gaps <= console.width else 1
    widths = _widened(least, most, console.width - gap * num_gaps)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.padding = (0, gap, 0, 0)
    table.width = sum(widths) + gap * num_gaps  # or it cuts what does not fit
    for name, width in zip(names, widths, strict=True):
        table.add_column(name, justify="left" if name in left else "right", width=width)
    for row in rows:
        table.add_row(*row)
    console.print(table, crop=False, markup=False)


def _least(name: str, texts: Sequence[str], *, folds: bool) -> int:
    """The width at which nothing is broken; a column's name may say by itself where it folds."""
    parts = name.splitlines() if "\n" in name else name.split()
    return _longest([*parts, *(_words(texts) if folds else _lines(texts))])


def _widened(least: Sequence[int], most: Sequence[int], in_all: int) -> list[int]:
    """The widths with what is left of the line, always for the narrowest that lacks something."""
    widths = list(least)
    for _ in range(min(in_all, sum(most)) - sum(least)):
        lacking = [index for index, width in enumerate(widths) if width < most[index]]
        widths[min(lacking, key=widths.__getitem__)] += 1
    return widths


def _lines(texts: Iterable[str]) -> list[str]:
    return [line for text in texts for line in text.splitlines()]


def _words(texts: Iterable[str]) -> list[str]:
    return [word for text in texts for word in text.split()]


def _longest(texts: Iterable[str]) -> int:
    return max(map(cell_len, texts), default=0)
