"""Traces made up for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ppll.tracing.files import RankTrace, Span, Start, Sum, Totals

__all__ = ["made_up_run", "made_up_start", "made_up_trace", "span", "totals_trace", "write_start"]


def span(name: str, start_s: float, end_s: float, step: int = 1, block: int = -1) -> Span:
    return Span.model_validate(
        {"name": name, "block": block, "step": step, "start_s": start_s, "end_s": end_s}
    )


def made_up_trace(rank: int, *spans: Span, clock: str = "a", offset_s: float = 0.0) -> RankTrace:
    return RankTrace(rank, rank, (rank,), 4, f"stage {rank}", clock, offset_s, spans, None)


def totals_trace(
    rank: int, blocks: tuple[int, ...], seconds: dict[str, float], *, num: int = 10, **more: Any
) -> RankTrace:
    """A rank whose blocks each had ``num`` messages; forward and learn are of every block."""
    sums = [
        Sum(name=name, block=block, num=num, seconds=total)
        for name, total in seconds.items()
        for block in (blocks if name in ("forward", "learn", "evaluate") else (-1,))
    ]
    fields = {"inbox_fills": (0, 5, 5), "outbox_fills": (10,), "cpu_s": 0.0, "num_dropped": 0}
    totals = Totals.model_validate({"sums": sums, **fields, **more})
    return RankTrace(rank, rank, blocks, 4, f"stage {rank}", "a", 0.0, (), totals)


def made_up_start(*seconds: dict[str, float], **more: Any) -> Start:
    """One block a stage, each with the given seconds by name."""
    return Start(tuple(totals_trace(r, (r,), s, **more) for r, s in enumerate(seconds)))


def made_up_run(path: Path) -> Path:
    """A run folder that tells nothing yet."""
    (path / "traces").mkdir(parents=True)
    (path / "config.toml").write_text("")
    return path


def write_start(
    run: Path, start: str, rank: int, *spans: Span, ended: bool = True, **more: Any
) -> None:
    """Add what a rank of one block wrote down in a start; at its end also what it summed up."""
    head = {
        "kind": "start",
        "start": start,
        "rank": rank,
        "place": f"rank {rank}",
        "blocks": [rank],
    }
    clocks = {"capacity": 4, "clock": "c", "wall_s": 0.0, "monotonic_s": 0.0}
    rows: list[dict[str, Any]] = [{**head, **clocks, **more}]
    rows += [{"kind": "span", **each.model_dump()} for each in spans]
    if ended:
        sums = [
            {"name": each.name, "block": each.block, "num": 1, "seconds": each.end_s - each.start_s}
            for each in spans
        ]
        counts = {"inbox_fills": [1], "outbox_fills": [1], "cpu_s": 1.0, "num_dropped": 0}
        rows.append({"kind": "totals", "sums": sums, **counts})
    with (run / "traces" / f"rank-{rank}.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
