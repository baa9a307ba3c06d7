"""The summary of a timeline as a person reads it, 80 columns wide (no torch)."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ppll.tables import print_table
from ppll.tracing.summary import StageSummary, Summary

__all__ = ["show_summary"]


def show_summary(console: Console, summary: Summary, advice: Sequence[str]) -> None:
    """Print a row a stage, what the blocks take, which stage holds the others, and what to do."""
    if summary.which_start is not None:
        _say(console, f"{summary.which_start}\n")
    rows = [_cells(stage) for stage in summary.stages]
    names = [name for name in rows[0] if name != "average wait" or summary.has_replicas]
    print_table(console, names, [[row[name] for name in names] for row in rows])
    console.print()
    for stage in summary.stages:
        for block in stage.blocks:
            times = f"forward {1e3 * block.forward_s:.2f} ms, learn {1e3 * block.learn_s:.2f} ms"
            _say(console, f"block {block.block}: {times}")
    if len(summary.stages) > 1:
        slow = summary.bottleneck
        _say(console, f"\nbottleneck: stage {slow.stage}, {1e3 * slow.work_s:.1f} ms a message")
    dropped = sum(stage.num_dropped for stage in summary.stages)
    if dropped:
        _say(console, f"{dropped} spans were not recorded: lower track.trace_steps")
    for text in advice or ["Nothing to change: no stage waits for long."]:
        _say(console, f"\n{text}")


def _cells(stage: StageSummary) -> dict[str, str]:
    """By the name of the column."""
    first, last = stage.blocks[0].block, stage.blocks[-1].block
    fill = "" if stage.inbox_fill is None else f"{stage.inbox_fill:.1f} of {stage.capacity}"
    return {
        "stage": str(stage.stage),
        "blocks": str(first) if first == last else f"{first}-{last}",
        "work": f"{1e3 * stage.work_s:.1f} ms",
        "busy": f"{stage.busy:.0%}",
        "receive wait": f"{stage.receive_wait:.0%}",
        "send wait": f"{stage.send_wait:.0%}",
        "average wait": f"{stage.average_wait:.0%}",
        "inbox": fill,
    }


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)
