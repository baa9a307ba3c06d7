"""Traces made up for tests."""

from __future__ import annotations

from typing import Any

from ppll.tracing.files import RankTrace, Span, Start, Sum, Totals

__all__ = ["made_up_start", "made_up_trace", "span", "totals_trace"]


def span(name: str, start_s: float, end_s: float, step: int = 1, block: int = -1) -> Span:
    return Span.model_validate(
        {"name": name, "block": block, "step": step, "start_s": start_s, "end_s": end_s}
    )


def made_up_trace(rank: int, *spans: Span, clock: str = "a", offset_s: float = 0.0) -> RankTrace:
    return RankTrace(rank, (rank,), 4, f"stage {rank}", clock, offset_s, spans, None)


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
    return RankTrace(rank, blocks, 4, f"stage {rank}", "a", 0.0, (), totals)


def made_up_start(*seconds: dict[str, float], **more: Any) -> Start:
    """One block a stage, each with the given seconds by name."""
    return Start(tuple(totals_trace(r, (r,), s, **more) for r, s in enumerate(seconds)))
