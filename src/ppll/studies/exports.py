"""A study's rows for other programs: every run as CSV, the table as LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from ppll.studies.outcome import Outcome
from ppll.studies.table import Row, full_cells, grid_keys, has_validation

__all__ = ["as_csv", "as_latex"]

_COSTS: Final = (
    *("epoch_seconds", "peak_memory_bytes", "num_stages"),
    *("weights_sha256", "run_folder"),
)
_SPECIAL: Final = re.compile(r"[&%$#_{}]")


def as_csv(rows: Sequence[Row]) -> str:
    """A line of names, then a line a finished run; accuracies from 0 to 1, the gap to ``backprop``
    of the same seed in points, sizes in bytes.

    Exits are those before the final output; a run of fewer blocks leaves the others empty, as a
    block does that makes no prediction.
    """
    num_exits = max((len(row.exit_accuracy) for row in rows), default=1) - 1
    text = io.StringIO()
    exits = [f"exit_{index}" for index in range(num_exits)]
    validated = ["validation_accuracy"] if has_validation(rows) else []
    names = ["recipe", "method", *grid_keys(rows), "seed", *validated, "test_accuracy", *exits]
    names += ["average_accuracy", "gap_to_backprop", *_COSTS]
    lines = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    lines.writeheader()
    for row in rows:
        lines.writerows(map(partial(_line, row), row.runs, row.run_gaps))
    return text.getvalue()


def _line(row: Row, run: Outcome, gap: float | None) -> dict[str, Any]:
    exits = {f"exit_{index}": reached for index, reached in enumerate(run.exit_accuracy[:-1])}
    named = {"recipe": row.recipe, "method": row.method, "gap_to_backprop": gap}
    return {**vars(run), **named, **row.grid, **exits}


def as_latex(rows: Sequence[Row]) -> str:
    """The table as a ``tabular`` with the rules of the package booktabs."""
    names, *lines = full_cells(rows)
    body = [_latex_line(names), r"\midrule", *map(_latex_line, lines)]
    inner = "\n".join([r"\toprule", *body, r"\bottomrule"])
    return f"\\begin{{tabular}}{{ll{'r' * (len(names) - 2)}}}\n{inner}\n\\end{{tabular}}\n"


def _latex_line(cells: Sequence[str]) -> str:
    escaped = [_SPECIAL.sub(r"\\\g<0>", cell).replace("±", r"$\pm$") for cell in cells]
    return " & ".join(escaped) + r" \\"
