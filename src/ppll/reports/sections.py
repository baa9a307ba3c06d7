"""The parts of a report on one run (no torch)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ppll.planning.plan import Plan
from ppll.reports.charts import Series, colour, draw_lanes_svg, legend, line_chart
from ppll.reports.data import Measure, Outcome, RunReport
from ppll.reports.markup import Markup, tag
from ppll.tracing.summary import StageSummary

__all__ = ["run_sections", "size", "table", "tested"]

_MIB: Final = 2**20
_DEEPEST: Final = 4


def run_sections(run: RunReport, plan: Plan | str | None) -> Iterator[Markup]:
    """All parts, those left out of which the run tells nothing.

    Args:
        run: The run.
        plan: What was predicted of it, or why nothing was; none where nobody asked.
    """
    yield _section("Result", _age(run), _tiles(run), _exits(run))
    yield _section("Learning curves", *_curves(run))
    yield _section("Where the time went", *_times(run))
    yield _section("Memory", _memory(run))
    yield _section("Predicted and measured", *_prediction(run, plan))
    yield _section(
        "What was run",
        _folded("recipe", tag("pre", run.recipe.to_toml())),
        _folded("environment", table(["", "is"], _environment(run.environment))),
        _folded(f"starts ({len(run.history)})", table(*_history(run))),
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    """A table that scrolls by itself where the page is narrow; first cells are heads of rows."""
    lines = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
        for row in rows
    ]
    heads = tag("tr", *(tag("th", name, scope="col") for name in head))
    whole = tag("table", tag("thead", heads), tag("tbody", *lines))
    return tag("div", whole, class_="scrolls")


def _percent(share: float | None) -> str:
    """A share in words."""
    return "" if share is None else f"{share:.2%}"


def _number(loss: float | None) -> str:
    """A loss in words."""
    return "" if loss is None else f"{loss:.5g}"


def size(num_bytes: float) -> str:
    """Bytes in words."""
    return f"{num_bytes / _MIB:,.0f} MiB"


def _section(title: str, *parts: Markup | None) -> Markup:
    content = [part for part in parts if part is not None]
    empty = tag("p", "Nothing was recorded of this.", class_="quiet")
    return tag("section", tag("h3", title), *(content or [empty]))


def _folded(title: str, content: Markup) -> Markup:
    return tag("details", tag("summary", title), content)


def _age(run: RunReport) -> Markup | None:
    if run.outcome is None or not run.is_past_outcome:
        return None
    text = f"The result is of an earlier start, at step {run.outcome.step:,}; the run has gone on."
    return tag("p", text)


def _tiles(run: RunReport) -> Markup | None:
    found = run.outcome
    if found is None:
        return tag("p", "The run has not ended: it has no result.json.", class_="quiet")
    tiles = [
        tested(found),
        ("samples per second", f"{found.samples_per_second:,.0f}"),
        ("training time", f"{found.train_seconds:,.1f} s"),
        ("steps", f"{found.step:,}"),
        ("stages", str(found.num_stages)),
    ]
    shown = [tag("div", tag("b", value), tag("span", name), class_="tile") for name, value in tiles]
    sha = tag("p", "weights_sha256: ", tag("code", found.weights_sha256), class_="quiet")
    return tag("div", tag("div", *shown, class_="tiles"), sha)


def tested(found: Outcome) -> tuple[str, str]:
    """What says how good a run is, and how good; of values it is the loss."""
    if found.test_accuracy is None and found.exit_accuracy:
        return "test loss", _number(found.test_loss) or "not finite"
    return "test accuracy", _percent(found.test_accuracy) or "not tested"


def _exits(run: RunReport) -> Markup | None:
    if run.outcome is None or not run.outcome.exit_accuracy:
        return None
    exits, losses = run.outcome.exit_accuracy, run.outcome.exit_loss
    if exits[-1] is None and losses:
        return _losses(losses)
    rows = [
        (name, _percent(a) or "no prediction", _meter(a))
        for name, a in zip(_names(len(exits)), exits, strict=True)
    ]
    return table(["exit", "test accuracy", ""], rows)


def _losses(losses: Sequence[float | None]) -> Markup:
    """Of values, which are neither right nor wrong."""
    shown = [_number(loss) or "no prediction" for loss in losses]
    return table(["exit", "test loss"], list(zip(_names(len(losses)), shown, strict=True)))


def _names(num_exits: int) -> list[str]:
    return [*(f"exit of block {i}" for i in range(num_exits - 1)), "final output"]


def _meter(share: float | None) -> Markup | str:
    if share is None:
        return ""
    return tag("div", tag("i", style=f"width:{100 * min(1.0, share):.1f}%"), class_="meter")


def _curves(run: RunReport) -> Iterator[Markup | None]:
    num = run.num_blocks
    blocks = sorted({row.block for row in run.metrics})
    if blocks:
        yield legend([(f"block {block}", colour(block, num)) for block in blocks])
    fields: tuple[Measure, ...] = ("loss", "accuracy")
    charts = [
        line_chart(
            f"{kind} {field}, by step",
            [
                Series(f"block {b}", colour(b, num), points, 2.5 if b == num - 1 else 1.5)
                for b, points in run.curves(kind, field).items()
            ],
            percent=field == "accuracy",
        )
        for kind in run.kinds
        for field in fields
    ]
    if any(charts):
        yield tag("div", *charts, class_="charts")


def _times(run: RunReport) -> Iterator[Markup | None]:
    if run.summary is None:
        return
    if run.summary.which_start is not None:
        yield tag("p", run.summary.which_start)
    rows = [_stage_cells(stage) for stage in run.summary.stages]
    head = [name for name in rows[0] if name != "average wait" or run.summary.has_replicas]
    yield table(head, [[row[name] for name in head] for row in rows])
    if len(run.summary.stages) > 1:
        yield tag("p", f"Bottleneck: stage {run.summary.bottleneck.stage}.")
    for text in run.advice:
        yield tag("p", text, class_="advice")
    if run.lanes is not None:
        yield draw_lanes_svg(run.lanes)


def _stage_cells(stage: StageSummary) -> dict[str, object]:
    """By the name of the column."""
    fill = stage.inbox_fill
    return {
        "stage": stage.stage,
        "blocks": ", ".join(str(block.block) for block in stage.blocks),
        "work a message": f"{1e3 * stage.work_s:.1f} ms",
        "busy": _shared_cell(stage.busy),
        "receive wait": f"{stage.receive_wait:.0%}",
        "send wait": f"{stage.send_wait:.0%}",
        "average wait": f"{stage.average_wait:.0%}",
        "inbox": "" if fill is None else f"{fill:.1f} of {stage.capacity}",
        "processor": "" if stage.cpu is None else f"{stage.cpu:.0%} of busy",
    }


def _shared_cell(share: float) -> Markup:
    return tag("div", f"{share:.0%}", _meter(share))


def _memory(run: RunReport) -> Markup | None:
    if run.outcome is None:
        return None
    peaks = run.outcome.peak_memory_bytes
    most = max(peaks, default=0) or 1
    rows = [(f"stage {i}", size(p), _meter(p / most)) for i, p in enumerate(peaks)]
    return table(["", "most memory of the process", ""], rows)


def _prediction(run: RunReport, plan: Plan | str | None) -> Iterator[Markup]:
    if plan is None:
        yield tag(
            "p",
            "No costs were given. ",
            tag("code", "ppll plan RECIPE --costs costs.json"),
            " measures them, ",
            tag("code", "ppll report RUN --costs costs.json"),
            " puts the prediction here.",
            class_="quiet",
        )
    elif isinstance(plan, str):
        yield tag("p", plan, class_="quiet")
    else:
        yield table(["", "predicted", "measured"], _compared(run, plan))
        yield tag(
            "p",
            f"The prediction is for {plan.costs.device}, measured layer by layer, and gives every "
            f"stage a processor of its own. Predicted memory is that of the blocks, measured that "
            f"of the whole process, libraries included.",
            class_="quiet",
        )


def _compared(run: RunReport, plan: Plan) -> list[list[object]]:
    measured = run.outcome
    rate = "" if measured is None else f"{measured.samples_per_second:,.0f}"
    rows: list[list[object]] = [["samples per second", f"{plan.samples_per_second:,.0f}", rate]]
    summaries = {s.stage: s for s in run.summary.stages} if run.summary is not None else {}
    for index, stage in enumerate(plan.stages):
        found = summaries.get(index)
        work = "" if found is None else f"{1e3 * found.work_s:.1f} ms"
        rows.append([f"stage {index}: work a message", f"{1e3 * stage.seconds:.1f} ms", work])
        busy = "" if found is None else f"{found.busy:.0%}"
        rows.append([f"stage {index}: busy", f"{1 - stage.idle:.0%}", busy])
        peaks = measured.peak_memory_bytes if measured is not None else ()
        peak = size(peaks[index]) if index < len(peaks) else ""
        rows.append([f"stage {index}: memory", size(stage.memory_bytes), peak])
    return rows


def _environment(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name.count(".") < _DEEPEST:
            rows += _environment(value, f"{name}.")
        else:
            rows.append((name, str(value)))
    return rows


def _history(run: RunReport) -> tuple[list[str], list[list[object]]]:
    head = ["time", "from step", "stages", "restart", "changed"]
    keys = ("time", "step", "num_stages", "generation", "changed")
    return head, [[_shown(row.get(key)) for key in keys] for row in run.history]


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
