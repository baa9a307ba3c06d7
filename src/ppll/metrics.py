"""Counters of blocks and stages, and the files they are written to.

A block counts on its device; the numbers leave it in bulk, when they are written.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from ppll.durable import write_whole
from ppll.json_lines import read_rows
from ppll.losses.classification import num_correct

__all__ = ["Counts", "MetricsFile", "Tally", "cut_back", "is_before", "merge_metrics"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tally:
    """What a block counted over a number of samples.

    Attributes:
        samples: How many; where every token has a target, how many tokens.
        loss: Mean loss of a sample; NaN where there are no samples.
        accuracy: Share of samples that the block's exit got right, 0 to 1; NaN like the loss, and
            where values are predicted.
        skipped: Further samples of batches that were not learned from, as a loss in them was not
            finite.
    """

    samples: int
    loss: float
    accuracy: float
    skipped: int = 0


class Counts:
    """Running sums of loss and right answers, kept on the device."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self.samples = 0
        self.skipped = 0
        self._before = self._sums, 0
        """What had been counted when the batch began."""

    def begin_batch(self) -> None:
        """A batch begins, in one message or several, that may turn out not to be learned from."""
        self._before = self._sums.clone(), self.samples

    def leave_out_batch(self) -> None:
        """The batch is not learned from: its samples count apart, and nothing else of it."""
        sums, samples = self._before
        self._sums.copy_(sums)
        self.skipped += self.samples - samples
        self.samples = samples

    def add(self, loss: Tensor | None, logits: Tensor | None, targets: Tensor) -> None:
        """Add a batch to the sums: mean loss (scalar), logits (..., classes), targets (...); or
        values (N, D), of which none is right or wrong.

        Without a loss or logits, as of a block that makes no prediction, the means are NaN. All of
        it happens on the device; ``count`` is what the host has to do.
        """
        num = _num_predicted(targets)
        with torch.no_grad():
            nothing = self._sums.new_full((), math.nan)
            if logits is None or targets.is_floating_point():
                correct = nothing
            else:
                correct = num_correct(logits, targets)
            total = nothing if loss is None else loss.double() * num
            self._sums += torch.stack([total, correct.double()])

    def count(self, targets: Tensor) -> None:
        """Count the samples of a batch."""
        self.samples += _num_predicted(targets)

    def take(self, total: Callable[[Tensor], Tensor] = lambda own: own) -> Tally:
        """What was counted since the last call.

        Args:
            total: Turns counts (4, float64) into those of all replicas.
        """
        own = torch.tensor([*self._sums.tolist(), self.samples, self.skipped], dtype=torch.float64)
        loss, correct, samples, skipped = total(own).tolist()
        num = samples or math.nan
        tally = Tally(int(samples), loss / num, correct / num, int(skipped))
        self._sums.zero_()
        self.samples = self.skipped = 0
        return tally


def _num_predicted(targets: Tensor) -> int:
    """Samples, or tokens where each has a target."""
    return len(targets) if targets.is_floating_point() else targets.numel()


class MetricsFile:
    """One rank's metrics, a JSON object a line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, **row: Any) -> None:
        """Append one row; a number that is not finite is written as null, as JSON has none."""
        finite = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
        }
        self._file.write(json.dumps(finite) + "\n")

    def flush(self) -> None:
        """Hand the rows to the operating system, so that a killed process loses none."""
        self._file.flush()

    def close(self) -> None:
        """Write out and close."""
        self._file.close()


def merge_metrics(parts: Path, target: Path) -> None:
    """Merge the ranks' files of a folder into one, ordered by step and block.

    A line that a killed process left unfinished is passed over. Where the disk is full, that is
    logged: it is no reason to lose a run, or the word of what else it has broken.
    """
    rows = [row for part in sorted(parts.glob("*.jsonl")) for row in read_rows(part)]
    rows.sort(key=lambda row: (row.get("step", 0), row.get("block", -1)))
    try:
        _write_rows(target, rows)
    except OSError as error:
        target.unlink(missing_ok=True)  # that of an earlier start would be taken for it
        _log.warning("no %s, its rows lie in %s: %s", target.name, parts, error)


def cut_back(parts: Path, step: int) -> None:
    """Forget what came after the checkpoint of ``step``, which will come again.

    An evaluation at that step follows the checkpoint, so it comes again, too.
    """
    for part in sorted(parts.glob("*.jsonl")):
        _write_rows(part, [row for row in read_rows(part) if is_before(row, step)])


def is_before(row: Mapping[str, Any], step: int) -> bool:
    """Whether a row was written before the checkpoint of ``step``."""
    at: int = row.get("step", 0)
    return at < step or (at == step and row.get("kind") == "train")


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
