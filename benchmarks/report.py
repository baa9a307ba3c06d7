"""What every benchmark needs: medians with their spread, and a JSON file with the machine in it."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppll.environment import describe_environment

__all__ = ["Spread", "end_process", "new_parser", "write_report"]

_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Spread:
    """The repeats of one measurement."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of some values, at least one."""
        return cls(tuple(values))

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def text(self, digits: int = 3, unit: str = "") -> str:
        """Median, and smallest to largest where there are several."""
        middle = f"{self.median:.{digits}f}{unit}"
        if len(self.values) == 1:
            return middle
        return f"{middle} ({min(self.values):.{digits}f} to {max(self.values):.{digits}f})"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": list(self.values),
        }


def new_parser(docstring: str | None, *, repeats: int | None = None) -> argparse.ArgumentParser:
    """A parser whose help is the module's docstring, with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(
        description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and machine here")
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats, help=f"default {repeats}")
    return parser


def write_report(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Write the rows with what they were measured on, if ``--json`` says where.

    What may be broken off calls it after every row.
    """
    if options.json is None:
        return
    report = {
        "options": {k: v for k, v in vars(options).items() if k != "json"},
        "machine": {**describe_environment(), "load_average": list(os.getloadavg())},
        "rows": rows,
    }
    options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def end_process(process: subprocess.Popen[Any]) -> None:
    """Make sure that a run is over: ask it to end, so that it clears up, then insist."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE_S)
    if process.poll() is None:
        process.kill()  # its ranks leave when it is gone
        process.wait()
