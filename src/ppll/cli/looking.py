"""Commands that look at what a run left behind: ``trace`` and ``report`` (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ppll.cli.options import Json, give_json
from ppll.extras import pip_install

if TYPE_CHECKING:
    from ppll.tracing.files import Start
    from ppll.tracing.summary import Summary

__all__ = ["report_runs", "trace_run"]


def trace_run(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    json: Json = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also draw a few batches: a .png, .svg or .pdf file."),
    ] = None,
) -> None:
    """Tell which stage holds up a run, who waits for whom, and what to change."""
    from ppll.errors import RunFolderError
    from ppll.run_folder import RunFolder
    from ppll.tracing.advice import advise, working_cores
    from ppll.tracing.files import newest_start
    from ppll.tracing.summary import summarize
    from ppll.tracing.view import show_summary

    folder = RunFolder.open(run)
    start = newest_start(folder)
    summary = summarize(start)
    if not any(stage.seconds for stage in summary.stages):
        raise RunFolderError(
            f"{run} has written down no batch yet: look again when its first batches "
            f"(track.trace_steps) are over. If it has ended, it came to no batch; what its "
            f"processes printed is in {folder.logs}."
        )
    recipe = folder.read_recipe()
    num_cores = working_cores(folder.read_environment(), recipe.runtime)
    advice = advise(summary, num_cores, recipe.checkpoint, recipe.train.threads_per_stage)
    if picture is not None:
        _draw(start, picture)
    if not give_json(json, _tree(summary, advice)):
        show_summary(Console(), summary, advice)
        if folder.timeline.exists():
            line = f"\n{folder.timeline}: every span; open it in https://ui.perfetto.dev"
            Console().print(line, highlight=False, markup=False, soft_wrap=True)


def _tree(summary: Summary, advice: Sequence[str]) -> dict[str, Any]:
    return {
        "rows": [stage.to_dict() for stage in summary.stages],
        "bottleneck": summary.bottleneck.stage,
        "advice": advice,
        "start": summary.start,
        "newest_start": summary.newest_start,
    }


def _draw(start: Start, path: Path) -> None:
    from ppll.errors import RunFolderError, UsageError
    from ppll.tracing.lanes import draw_lanes

    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"cannot draw {path}: give it the ending .png, .svg or .pdf.")
    lanes = draw_lanes(start)
    if lanes is None:
        raise RunFolderError("there is nothing to draw: no batch was learned from.")
    try:
        from ppll.tracing.picture import draw_timeline
    except ImportError:
        install = pip_install("matplotlib")
        raise UsageError(
            f"--picture needs matplotlib, which is not installed: {install}."
        ) from None
    try:
        draw_timeline(lanes, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}.") from None


def report_runs(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE.html", help="Of one run, RUN/report.html by default."),
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Costs that ppll plan measured: adds the prediction."),
    ] = None,
) -> None:
    """Write one HTML page on a run, or on several side by side."""
    from ppll.errors import UsageError
    from ppll.reports.report import write_report

    if to is None and len(runs) > 1:
        raise UsageError(f"a report on {len(runs)} runs needs --to FILE.html: say where to.")
    target = to or runs[0] / "report.html"
    write_report(runs, target, costs)
    Console().print(f"report: {target}", highlight=False, markup=False, soft_wrap=True)
