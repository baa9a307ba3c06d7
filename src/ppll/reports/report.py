"""Run folders into one HTML file that needs no network and no script (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ppll.config import Recipe
from ppll.durable import write_asked
from ppll.errors import RecipeError, UsageError
from ppll.planning.costs import Costs
from ppll.planning.plan import Plan, draw_plan
from ppll.reports.charts import Series, colour, legend, line_chart
from ppll.reports.data import Measure, Points, RunReport, read_run
from ppll.reports.markup import Markup, style_sheet, tag
from ppll.reports.sections import run_sections, size, table, tested
from ppll.simulation.simulate import Link

__all__ = ["draw_page", "write_report"]

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
"""A browser that reads the page loads and runs nothing, whatever is in it."""

_STYLE: Final = """
:root { color-scheme: light; --line: #d9dee3; --quiet: #5c6670; --ink: #1c2329; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; background: #fff; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.25rem; margin: 2rem 0 0;
  overflow-wrap: anywhere; border-top: 3px solid var(--ink); padding-top: .5rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .5rem; }
.quiet { color: var(--quiet); overflow-wrap: anywhere; }
.tiles { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
.tile { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .7rem; }
.tile b { display: block; font-size: 1.35rem; } .tile span { color: var(--quiet); }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); }
figure { margin: 0; max-width: 26rem; } figcaption { color: var(--quiet); }
svg { width: 100%; height: auto; display: block; } svg.lanes { min-width: 46rem; }
svg text { font: 10px system-ui, "DejaVu Sans", sans-serif; fill: var(--quiet); }
svg text.on { fill: #fff; } svg .grid { stroke: var(--line); stroke-width: .7; }
.scrolls { overflow-x: auto; }
table { border-collapse: collapse; margin: .4rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; } thead th { color: var(--quiet); font-weight: 500; white-space: nowrap; }
tbody th { font-weight: 500; } tbody th, td { white-space: nowrap; }
.meter { width: min(8rem, 22vw); height: .5rem; background: #eef0f2; border-radius: 3px;
  margin: .3rem 0; }
.meter i { display: block; height: 100%; background: #3b76af; border-radius: 3px; }
.key { margin-right: 1rem; white-space: nowrap; display: inline-block; }
.key i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px;
  margin-right: .35rem; vertical-align: -1px; }
.advice { border-left: 4px solid #e08a3c; padding: .2rem .8rem; background: #fdf5ec; }
details { margin: .4rem 0; } summary { cursor: pointer; }
pre { overflow-x: auto; background: #f6f7f8; padding: .7rem; font-size: 13px; }
"""


def write_report(runs: Sequence[Path], target: Path, costs: Path | None = None) -> None:
    """Write one page on one run, or on several and what they differ in.

    Args:
        runs: Run folders.
        target: The HTML file to write.
        costs: Measured costs of the runs' recipe, for what was to be expected.

    Raises:
        UsageError: A folder is no run, the costs are of no run's recipe, or the file cannot be
            written.
    """
    if target.suffix not in (".html", ".htm"):
        raise UsageError(f"{target}: the page is HTML; give such a name, as in report.html.")
    reports = [read_run(path) for path in runs]
    plans = _plans(reports, costs)
    page = draw_page(reports, plans)
    write_asked(target, page.encode("utf-8"))


def draw_page(runs: Sequence[RunReport], plans: Sequence[Plan | str | None]) -> str:
    """The page, with the plan of every run or why there is none."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"PPLL: {title}"),
        style_sheet(_STYLE),
    )
    parts = [] if len(runs) == 1 else _comparison(runs)
    for run, plan in zip(runs, plans, strict=True):
        parts += [tag("h2", run.name)] if len(runs) > 1 else []
        parts += [_subtitle(run.recipe), *run_sections(run, plan)]
    body = tag("body", tag("h1", f"PPLL: {title}"), *parts)
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _subtitle(recipe: Recipe) -> Markup:
    text = (
        f"{recipe.model.name} on {recipe.data.name}, {recipe.method.name}, "
        f"{recipe.split.blocks} blocks on {recipe.runtime.stages} stage(s)"
    )
    return tag("p", text, class_="quiet")


def _plans(runs: Sequence[RunReport], file: Path | None) -> list[Plan | str | None]:
    if file is None:
        return [None] * len(runs)
    costs = Costs.read(file)
    plans: list[Plan | str | None] = []
    refused = None
    for run in runs:
        try:
            plans.append(draw_plan(run.recipe, costs, run.recipe.runtime.stages, Link()))
        except RecipeError as error:
            plans.append(str(error))
            refused = error
    if refused is not None and all(isinstance(plan, str) for plan in plans):
        raise refused
    return plans


# --- several runs --------------------------------------------------------------------------


def _comparison(runs: Sequence[RunReport]) -> list[Markup]:
    tests = {tested(run.outcome)[0] for run in runs if run.outcome} or {"test accuracy"}
    head = ["run", "method", "stages", "steps", " or ".join(sorted(tests))]
    head += ["samples/s", "busy", "memory"]
    names = _names(runs)
    differing = _differing([run.recipe for run in runs])
    return [
        tag("h3", "Side by side"),
        table(head, [_row(name, run) for name, run in zip(names, runs, strict=True)]),
        *_final_curves(runs, names, _measure(runs)),
        tag("h3", "What differs in the recipes"),
        table(["key", *names], differing) if differing else tag("p", "Nothing.", class_="quiet"),
    ]


def _names(runs: Sequence[RunReport]) -> list[str]:
    """Names of folders, numbered where two have the same."""
    names = [run.name for run in runs]
    return [n if names.count(n) == 1 else f"{n} ({i + 1})" for i, n in enumerate(names)]


def _measure(runs: Sequence[RunReport]) -> Measure:
    """What all can be compared by: the loss where none has an accuracy, as of values."""
    rows = [row for run in runs for row in run.metrics]
    return "loss" if rows and all(row.accuracy is None for row in rows) else "accuracy"


def _row(name: str, run: RunReport) -> list[object]:
    found = run.outcome
    if found is None:
        return [name, run.recipe.method.name, *["not ended"], *[""] * 5]
    return [
        name,
        run.recipe.method.name,
        found.num_stages,
        f"{found.step:,}{' (earlier start)' if run.is_past_outcome else ''}",
        tested(found)[1],
        f"{found.samples_per_second:,.0f}",
        ", ".join(f"{share:.0%}" for share in found.busy_fraction),
        size(max(found.peak_memory_bytes, default=0)),
    ]


def _final_curves(
    runs: Sequence[RunReport], names: Sequence[str], measure: Measure
) -> list[Markup]:
    """Of the last block; where the runs share no kind of it, each name says its own."""
    curves = [_of_last_block(run, measure) for run in runs]
    shared = _kind([each for each in curves if each])
    kinds = [shared or _kind([each]) for each in curves]
    title = f"{measure} of the final output, by step"
    if shared is None:
        names = [f"{n}, {kind}" if kind else n for n, kind in zip(names, kinds, strict=True)]
    else:
        title = f"{shared} {title}"
    shades = [colour(i, len(runs)) for i in range(len(runs))]
    points = [each.get(kind or "", ()) for each, kind in zip(curves, kinds, strict=True)]
    lines = [Series(*line) for line in zip(names, shades, points, strict=True)]
    if (chart := line_chart(title, lines, percent=measure == "accuracy")) is None:
        return []
    return [legend(list(zip(names, shades, strict=True))), tag("div", chart, class_="charts")]


def _of_last_block(run: RunReport, measure: Measure) -> dict[str, Points]:
    """By kind."""
    curves = {kind: run.curves(kind, measure) for kind in run.kinds}
    final = run.num_blocks - 1
    return {kind: blocks[final] for kind, blocks in curves.items() if final in blocks}


def _kind(curves: Sequence[Mapping[str, Points]]) -> str | None:
    """What all have and was evaluated most often where that was least; training if nothing else."""
    shared = [kind for kind in (curves or [{}])[0] if all(kind in each for each in curves)]
    least = {kind: min(len(each[kind]) for each in curves) for kind in shared}
    return max(shared, key=lambda kind: (kind != "train", least[kind]), default=None)


def _differing(recipes: Sequence[Recipe]) -> list[list[object]]:
    flat = [_flat(recipe.model_dump(mode="json")) for recipe in recipes]
    keys = list(dict.fromkeys(key for tree in flat for key in tree))
    rows: list[list[object]] = [[key, *(t.get(key, "") for t in flat)] for key in keys]
    return [row for row in rows if any(value != row[1] for value in row[1:])]


def _flat(tree: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {
        f"{section}.{key}": str(value)
        for section, keys in tree.items()
        for key, value in keys.items()
    }
