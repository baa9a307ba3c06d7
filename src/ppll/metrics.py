"""Counters of blocks and stages, and the files they are written to.

A block counts on its device; the numbers leave it in bulk, when they are written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

__all__ = ["Counts", "MetricsFile", "Tally", "merge_metrics"]


@dataclass(frozen=True)
class Tally:
    """What a block counted over a number of samples.

    Attributes:
        samples: How many.
        loss: Mean loss of a sample.
        accuracy: Share of samples that the block's exit got right, 0 to 1.
    """

    samples: int
    loss: float
    accuracy: float


class Counts:
    """Running sums of loss and right answers, kept on the device."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self.samples = 0

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Count a batch: mean loss (scalar), logits (N, classes), targets (N)."""
        num = targets.shape[0]
        with torch.no_grad():
            correct = (logits.argmax(dim=1) == targets).sum()
            self._sums += torch.stack([loss.double() * num, correct.double()])
        self.samples += num

    def take(self) -> Tally:
        """What was counted since the last call."""
        loss, correct = self._sums.tolist()
        num = max(1, self.samples)
        tally = Tally(self.samples, loss / num, correct / num)
        self._sums.zero_()
        self.samples = 0
        return tally


class MetricsFile:
    """One rank's metrics, a JSON object a line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, **row: Any) -> None:
        """Append one row."""
        self._file.write(json.dumps(row) + "\n")

    def flush(self) -> None:
        """Hand the rows to the operating system, so that a killed process loses none."""
        self._file.flush()

    def close(self) -> None:
        """Write out and close."""
        self._file.close()


def merge_metrics(parts: Iterable[Path], target: Path) -> None:
    """Merge the ranks' files into one, ordered by step and block.

    A line that a killed process left unfinished is passed over.
    """
    rows = [row for part in sorted(parts) for row in _rows(part)]
    rows.sort(key=lambda row: (row.get("step", 0), row.get("block", -1)))
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
