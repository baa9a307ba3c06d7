"""What a person sees of a run: its blocks, its progress, its result."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ppll.result import Result
from ppll.split import Blueprint
from ppll.status import Activity, Status

__all__ = ["LiveView", "show_blocks", "show_result"]

_LINE_EVERY_S = 5.0


def show_blocks(console: Console, blueprint: Blueprint) -> None:
    """Print which layers make which block, and on which stage it runs.

    The context that a method adds to a block's input counts as the block's own.
    """
    stages = blueprint.stage_blocks(blueprint.recipe.runtime.stages)
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "block", "layers", "parameters", "auxiliary"):
        table.add_column(column, justify="left" if column == "layers" else "right")
    for index, layers in enumerate(blueprint.ranges):
        stage = next(s for s, blocks in enumerate(stages) if index in blocks)
        row = [blueprint.network.layers[i] for i in layers]
        outline = blueprint.outline(index)
        heads = outline.auxiliaries()
        auxiliary = sum(p.numel() for head in heads for p in head.parameters())
        own = sum(p.numel() for _, p in outline.named_parameters()) - auxiliary
        names = f"{row[0].name} .. {row[-1].name}" if len(row) > 1 else row[0].name
        shown = f"{auxiliary:,}" if heads else "-"
        table.add_row(str(stage), str(index), names, f"{own:,}", shown)
    console.print(table)


def show_result(console: Console, result: Result) -> None:
    """Print what a run came to."""
    for index, accuracy in enumerate(result.exit_accuracy):
        last = index == result.num_blocks - 1
        name = "final output" if last else f"exit of block {index}"
        shown = "no prediction" if accuracy is None else f"{accuracy:.2%}"
        console.print(f"test accuracy, {name}: {shown}", highlight=False)
    if result.validation_accuracy is not None:
        console.print(f"validation accuracy: {result.validation_accuracy:.2%}", highlight=False)
    if result.best_validation_accuracy is not None:
        best = f"{result.best_validation_accuracy:.2%} (step {result.best_step})"
        console.print(f"best validation accuracy: {best}", highlight=False)
    if result.samples_per_second:
        rate = f"{result.samples_per_second:,.0f} ({result.train_seconds:.1f} s)"
        console.print(f"training samples per second: {rate}", highlight=False)
    busy = "  ".join(f"{s}: {share:.0%}" for s, share in enumerate(result.busy_fraction))
    console.print(f"busy share by stage: {busy}", highlight=False)
    console.print(f"weights_sha256: {result.weights_sha256}", highlight=False, soft_wrap=True)
    console.print(f"run folder: {result.run_folder}", highlight=False, soft_wrap=True)


class LiveView:
    """Progress of a run: a bar on a terminal, a line every few seconds elsewhere.

    Args:
        console: Where to.
        blueprint: What is trained.
        quiet: Show nothing.
    """

    def __init__(self, console: Console, blueprint: Blueprint, *, quiet: bool = False) -> None:
        self._console = console
        self._blueprint = blueprint
        self._quiet = quiet
        self._next_line_s = 0.0
        self._started_s: float | None = None
        self._progress = Progress(
            TextColumn("{task.fields[note]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=blueprint.num_steps, note="starting")

    def __enter__(self) -> Self:
        if not self._quiet:
            show_blocks(self._console, self._blueprint)
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def update(self, statuses: Sequence[Status]) -> None:
        """Show where the stages are; the last one says how far the run has come."""
        note = self._describe(statuses)
        self._progress.update(self._task, completed=statuses[-1].step, note=note)
        now_s = time.monotonic()
        if not self._quiet and not self._console.is_terminal and now_s > self._next_line_s:
            self._next_line_s = now_s + _LINE_EVERY_S
            self._console.print(
                f"step {statuses[-1].step}/{self._blueprint.num_steps}  {note}", highlight=False
            )

    def _describe(self, statuses: Sequence[Status]) -> str:
        samples = statuses[-1].samples
        if not samples:
            return "starting"
        if self._started_s is None:
            self._started_s = time.monotonic()
        if statuses[-1].activity is Activity.EVALUATE:
            return f"epoch {statuses[-1].epoch + 1}  evaluating"
        elapsed_s = time.monotonic() - self._started_s
        rate = f"{samples / elapsed_s:,.0f} samples/s" if elapsed_s > 1 else "..."
        losses = [f"{s.loss:.3f}" for s in statuses if not math.isnan(s.loss)]
        loss = f"  loss {' '.join(losses)}" if losses else ""
        return f"epoch {statuses[-1].epoch + 1}  {rate}{loss}"
