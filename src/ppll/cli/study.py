"""``ppll study``: several recipes or methods over several seeds, one table (no torch)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console

from ppll.cli.options import Json, Settings, Stages, as_json, give_json
from ppll.errors import UsageError
from ppll.extras import pip_install
from ppll.tables import print_table
from ppll.torchrun import started_by_torchrun

if TYPE_CHECKING:
    from ppll.studies.runs import StudyRun
    from ppll.studies.table import Row

__all__ = ["study_recipes"]

_ENDINGS: Final = ("json", "md", "csv", "tex", "png")


Recipes = Annotated[
    list[str],
    typer.Argument(metavar="RECIPE...", help="Recipe files (.toml), or names of shipped recipes."),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[:KEY=VALUE,...],...",
        help="Train each recipe by each of these methods instead of its own.",
    ),
]
Grid = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SECTION.KEY=VALUE,VALUE,...",
        help="Train with each of these values; given again, with all combinations.",
    ),
]


def study_recipes(
    recipes: Recipes,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each; seeds count up from the recipe's.")
    ] = 3,
    methods: Methods = None,
    grid: Grid = None,
    stages: Stages = None,
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(help="The study's folder; studies/<recipe> by default.")
    ] = None,
    parallel: Annotated[
        int, typer.Option(min=1, metavar="N", help="Runs that go on side by side.")
    ] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    json: Json = None,
) -> None:
    """Train recipes or methods over several seeds and put them into one table.

    The same command goes on where it stopped; what is finished is not trained again.
    """
    if started_by_torchrun():
        raise UsageError("a study starts processes of its own: run it without torchrun.")
    from ppll.studies.runs import grid_points, list_runs, split_methods
    from ppll.studies.study import hold, train_all

    wanted = list(settings or [])
    if stages is not None:
        wanted.append(f"runtime.stages={stages}")
    out = out or _default_folder(recipes)
    named = split_methods(methods) if methods else []
    runs = list_runs(recipes, named, seeds, wanted, out, grid_points(grid or []))
    console = Console(stderr=True, quiet=quiet)
    left = _check(runs, console)
    with hold(out):
        failures = train_all(
            left,
            parallel=parallel,
            noted=lambda text: _note(console, text),
            finished=lambda: _write(runs, out),
        )
        rows = _write(runs, out)
        _draw(rows, out / "study.png", console)
    if not give_json(json, _tree(rows)):
        _show(rows, runs, out)
    if failures:
        listed = "\n".join(failures)
        sys.stderr.write(f"{len(failures)} of {len(runs)} runs failed:\n{listed}\n")
        raise typer.Exit(1)


def _default_folder(recipes: Sequence[str]) -> Path:
    """The same for the same command, which goes on in it."""
    others = f"-and-{len(recipes) - 1}-more" if len(recipes) > 1 else ""
    return Path("studies") / f"{Path(recipes[0]).stem}{others}"


def _check(runs: Sequence[StudyRun], console: Console) -> list[StudyRun]:
    """The runs that are left; what cannot be is found out before a folder is made."""
    from ppll.decoding_view import decoding_shown
    from ppll.studies.study import check_runs

    with decoding_shown(None if console.quiet else console):
        left = check_runs(runs)
    done = f"{len(runs) - len(left)} finished before, " if len(left) < len(runs) else ""
    _note(console, f"{len(runs)} runs: {done}{len(left)} to train")
    return left


def _note(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _tree(rows: Sequence[Row]) -> dict[str, Any]:
    from ppll.environment import describe_environment

    return {
        "rows": [row.to_dict() for row in rows],
        "command": ["ppll", *sys.argv[1:]],
        "environment": {**describe_environment(), "load_average": list(os.getloadavg())},
    }


def _write(runs: Sequence[StudyRun], out: Path) -> list[Row]:
    """Write what is known so far, for people and programs."""
    from ppll.durable import write_asked
    from ppll.studies.exports import as_csv, as_latex
    from ppll.studies.table import draw_rows, markdown

    rows = draw_rows(runs)
    tree = _tree(rows)
    texts = {
        "json": as_json(tree),
        "md": markdown(rows, tree["command"], tree["environment"]),
        "csv": as_csv(rows),
        "tex": as_latex(rows),
    }
    for ending, text in texts.items():
        write_asked(out / f"study.{ending}", text.encode())
    return rows


def _draw(rows: Sequence[Row], path: Path, console: Console) -> None:
    try:
        from ppll.studies.picture import draw_picture
    except ModuleNotFoundError as error:
        _note(
            console,
            f"no picture, because {error.name} is not installed: {pip_install('matplotlib')}, "
            f"then give the same command again.",
        )
        return
    draw_picture(rows, path)


def _show(rows: Sequence[Row], runs: Sequence[StudyRun], out: Path) -> None:
    from ppll.studies.runs import left_out
    from ppll.studies.table import short_cells

    names, *lines = short_cells(rows)
    console = Console()
    print_table(console, names, lines, left=("recipe", "method", "exits"))
    files = [f.name for e in _ENDINGS if (f := out / f"study.{e}").exists()]
    console.out(f"{out}: {', '.join(files)} and all runs", highlight=False)
    if others := left_out(runs, out):
        _note(
            console,
            f"Not in these tables, since this command does not ask for them: {', '.join(others)}. "
            f"Name them, too, to have all in one; what is trained is not trained again.",
        )
