"""What a person sees of a run: its blocks, its progress, its result."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ppll.blocks.blueprint import Blueprint
from ppll.callbacks import Callback
from ppll.data_facts import DataFacts
from ppll.launching.launch import Watcher
from ppll.pace import Pace
from ppll.placement import mesh_of
from ppll.result import Result
from ppll.status import Status
from ppll.tables import print_table
from ppll.tracing.spans import SPAN_NAMES

__all__ = ["LiveView", "progress_console", "show_blocks", "show_evaluation", "show_result"]
__all__ += ["shown", "together"]

_log = logging.getLogger(__name__)

_LINE_EVERY_S = 5.0
_MIB = 2**20


def progress_console(progress: bool | Console | None) -> Console | None:
    """Where progress is shown; none where it is not.

    Args:
        progress: Whether; without, on a terminal and in a notebook. Or where.
    """
    if isinstance(progress, Console):
        return progress
    console = Console(stderr=True)
    is_seen = console.is_terminal or console.is_jupyter
    return console if (is_seen if progress is None else progress) else None


def show_blocks(console: Console, blueprint: Blueprint) -> None:
    """Print which layers make which block, and on which stage it runs.

    The context that a method adds to a block's input counts as the block's own.
    """
    stages = blueprint.stage_blocks(blueprint.recipe.runtime.stages)
    replicas = mesh_of(blueprint.recipe.train.replicas, len(stages)).replicas
    shares = ("replicas",) if max(replicas) > 1 else ()
    rows = []
    for index, layers in enumerate(blueprint.ranges):
        stage = next(s for s, blocks in enumerate(stages) if index in blocks)
        row = [blueprint.network.layers[i] for i in layers]
        outline = blueprint.outline(index)
        heads = outline.auxiliaries()
        auxiliary = sum(p.numel() for head in heads for p in head.parameters())
        own = sum(p.numel() for _, p in outline.named_parameters()) - auxiliary
        names = f"{row[0].name} .. {row[-1].name}" if len(row) > 1 else row[0].name
        shown = f"{auxiliary:,}" if heads else "-"
        num = [str(replicas[stage])] if shares else []
        rows.append([str(stage), *num, str(index), names, f"{own:,}", shown])
    columns = ("stage", *shares, "block", "layers", "parameters", "auxiliary")
    print_table(console, columns, rows, left=("layers",))


def show_result(console: Console, result: Result) -> None:
    """Print what a run came to."""
    _show_accuracies(console, result)
    if result.samples_per_second:  # else nothing was left to train
        rate = f"{result.samples_per_second:,.0f} ({result.train_seconds:.1f} s)"
        console.print(f"training samples per second: {rate}", highlight=False)
        busy = "  ".join(f"{s}: {share:.0%}" for s, share in enumerate(result.busy_fraction))
        console.print(f"busy share by stage: {busy}", highlight=False)
    _show_origin(console, result)


def show_evaluation(console: Console, result: Result) -> None:
    """Print how accurate a checkpoint is."""
    console.print(f"the network after step {result.step}", highlight=False)
    _show_accuracies(console, result)
    _show_origin(console, result)


def _show_accuracies(console: Console, result: Result) -> None:
    exits = zip_longest(result.exit_accuracy, result.exit_loss)  # Older runs have no losses.
    for index, (accuracy, loss) in enumerate(exits):
        last = index == result.num_blocks - 1
        name = "final output" if last else f"exit of block {index}"
        measure, value = _measured(accuracy, loss, is_final=last)
        console.print(f"test {measure}, {name}: {value}", highlight=False)
        if result.exit_perplexity and (found := result.exit_perplexity[index]) is not None:
            console.print(f"test perplexity, {name}: {found:.4f}", highlight=False)
    if result.validation_accuracy is not None or result.validation_loss is not None:
        values = result.validation_accuracy, result.validation_loss
        measure, value = _measured(*values, is_final=True)
        console.print(f"validation {measure}: {value}", highlight=False)
    if result.best_step is not None:
        values = result.best_validation_accuracy, result.best_validation_loss
        measure, value = _measured(*values, is_final=True)
        line = f"best validation {measure}: {value} (step {result.best_step})"
        console.print(line, highlight=False)


def _measured(accuracy: float | None, loss: float | None, *, is_final: bool) -> tuple[str, str]:
    """The accuracy of a prediction; of values, which have none, the loss."""
    if accuracy is not None:
        return "accuracy", f"{accuracy:.2%}"
    if loss is not None:
        return "loss", f"{loss:.4f}"
    return ("loss", "not finite") if is_final else ("accuracy", "no prediction")


def _show_origin(console: Console, result: Result) -> None:
    console.print(f"weights_sha256: {result.weights_sha256}", highlight=False, soft_wrap=True)
    console.out(f"run folder: {result.run_folder}", highlight=False)  # No bracket is markup.


class LiveView(Callback):
    """What a run does: a table that changes on a terminal, a line every few seconds elsewhere.

    Args:
        console: Where to.
        blueprint: What is trained.
        facts: How many samples an evaluation has.
    """

    def __init__(self, console: Console, blueprint: Blueprint, facts: DataFacts) -> None:
        self._console = console
        self._blueprint = blueprint
        self._facts = facts
        self._stages = blueprint.stage_blocks(blueprint.recipe.runtime.stages)
        self._pace = Pace(blueprint.num_steps)
        self._statuses: Sequence[Status] = ()
        self._rows: dict[int, dict[str, Mapping[str, Any]]] = {}
        self._next_line_s = 0.0
        self._live = Live(
            console=console, get_renderable=self.render, refresh_per_second=2, transient=True
        )

    def __enter__(self) -> Self:
        show_blocks(self._console, self._blueprint)
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def on_metrics(self, row: Mapping[str, Any]) -> None:
        """Keep each block's newest numbers, in training and in evaluation."""
        name = "train" if row["kind"] == "train" else "tested"
        self._rows.setdefault(row["block"], {})[name] = row

    def update(self, statuses: Sequence[Status]) -> None:
        """Show where the first replica of every stage is; the last stage says how far the run has
        come."""
        now_s, num = time.monotonic(), len(self._stages)
        mesh = mesh_of(self._blueprint.recipe.train.replicas, num)
        self._statuses = statuses[:num]
        num_samples = sum(statuses[rank].samples for rank in mesh.ranks(num - 1))
        self._pace.note(self._statuses[-1].step, num_samples, now_s)
        if self._console.is_terminal or now_s <= self._next_line_s:
            return
        self._next_line_s = now_s + _LINE_EVERY_S
        self._console.print(self._line(), highlight=False, soft_wrap=True)

    def _line(self) -> str:
        """All of it in a line, for a file."""
        statuses = self._statuses
        if not self._has_begun:
            return "starting"  # At which step is not known yet: the run may go on.
        step = f"step {statuses[-1].step}/{self._blueprint.num_steps}"
        losses = [_number(self._of_block(b, "train", "loss")) for b in self._blocks()]
        exits = [self._tested(b) for b in self._blocks()]
        busy = [_share(status.busy) for status in statuses]
        parts = [step, self._epoch(), *self._progress()]
        for name, values in (("loss", losses), ("tested", exits), ("busy", busy)):
            parts += [f"{name} {' '.join(values)}"] if all(values) else []
        return "  ".join(parts)

    def render(self) -> RenderableType:
        """What a terminal shows."""
        if not self._has_begun:
            return Text("starting")
        return Group(self._bar(), self._table())

    def _bar(self) -> Table:
        step, per_epoch = self._statuses[-1].step, self._blueprint.steps_per_epoch
        done = step - self._statuses[-1].epoch * per_epoch
        bar = ProgressBar(total=per_epoch, completed=done, width=20)
        grid = Table.grid(padding=(0, 2))
        grid.add_row(self._epoch(), bar, f"{done}/{per_epoch}", *self._progress())
        return grid

    @property
    def _has_begun(self) -> bool:
        """Whether the last stage has had a batch."""
        return any(status.samples or status.tested for status in self._statuses[-1:])

    def _progress(self) -> list[str]:
        """How fast it goes and how long it takes, or how far an evaluation is."""
        last = self._statuses[-1]
        if not last.tested:
            return self._pace.words()
        at_end = last.step == self._blueprint.num_steps
        return [f"testing, {last.tested:,} of {self._facts.num_evaluated(at_end=at_end):,}"]

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for column in (
            "stage",
            "does",
            "busy",
            "inbox",
            "memory",
            "block",
            "loss",
            "acc",
            "tested",
        ):
            table.add_column(column, justify="left" if column == "does" else "right", no_wrap=True)
        for status, blocks in zip(self._statuses, self._stages, strict=False):
            for block in blocks:
                table.add_row(*self._stage_cells(status, blocks, block), *self._block_cells(block))
        return table

    def _stage_cells(self, status: Status, blocks: range, block: int) -> list[str]:
        if block != blocks[0]:
            return [""] * 5
        return [
            str(self._stages.index(blocks)),
            SPAN_NAMES[status.activity],
            _share(status.busy),
            f"{status.inbox_fill}/{self._blueprint.recipe.runtime.capacity}",
            f"{status.memory_bytes / _MIB:,.0f} MiB" if status.memory_bytes else "",
        ]

    def _block_cells(self, block: int) -> list[str]:
        return [
            str(block),
            _number(self._of_block(block, "train", "loss")),
            _share(self._of_block(block, "train", "accuracy")),
            self._tested(block),
        ]

    def _tested(self, block: int) -> str:
        """The accuracy of a block's exit; of values, which have none, the loss."""
        accuracy = _share(self._of_block(block, "tested", "accuracy"))
        return accuracy or _number(self._of_block(block, "tested", "loss"))

    def _blocks(self) -> range:
        return range(self._blueprint.num_blocks)

    def _of_block(self, block: int, kind: str, field: str) -> float | None:
        found: float | None = self._rows.get(block, {}).get(kind, {}).get(field)
        return found

    def _epoch(self) -> str:
        num_epochs = -(-self._blueprint.num_steps // self._blueprint.steps_per_epoch)
        return f"epoch {self._statuses[-1].epoch + 1}/{num_epochs}"


@contextmanager
def shown(
    console: Console | None, blueprint: Blueprint, facts: DataFacts
) -> Iterator[list[LiveView]]:
    """Show a run that goes on meanwhile, by one view; by none without a console."""
    if console is None:
        yield []
        return
    with LiveView(console, blueprint, facts) as view:
        yield [view]


def together(watchers: Sequence[Watcher]) -> Watcher | None:
    """One watcher that tells all; none of none. One that fails costs no run: it is told no more."""
    told = list(watchers)

    def watch(statuses: Sequence[Status]) -> None:
        for watcher in list(told):
            try:
                watcher(statuses)
            except Exception:
                told.remove(watcher)
                _log.exception("%r failed; it is shown no more.", watcher)

    return watch if watchers else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
