"""The command line: parse, delegate, print (no torch until a command needs it)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from ppll.errors import Interrupted, PpllError, UsageError

if TYPE_CHECKING:
    from ppll.config import Recipe

__all__ = ["app", "main"]

app = typer.Typer(
    name="ppll",
    help="Train deep networks across devices without a backward pass between them.",
    epilog="Start with: ppll train digits-resnet --stages 4",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe file (.toml), or the name of a shipped recipe.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change one key of the recipe; may be given many times.",
    ),
]
Stages = Annotated[
    int | None,
    typer.Option("--stages", min=1, help="Number of processes; the result does not depend on it."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


@app.command()
def train(
    recipe: RecipeArgument,
    stages: Stages = None,
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; runs/<recipe>-<time> by default.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the newest whole checkpoint in --out, if any."),
    ] = False,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-change",
            metavar="SECTION.KEY",
            help="With --resume: a key that may differ although it changes what is trained.",
        ),
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option("--max-restarts", min=0, help="Restarts after a failure, without asking."),
    ] = 0,
    quiet: Quiet = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and show the blocks; train nothing.")
    ] = False,
) -> None:
    """Train a recipe and print what it reached."""
    if resume and out is None:
        raise UsageError("--resume needs --out: the folder of the run to go on with.")
    loaded = _load(recipe, stages, settings)
    if (loaded.runtime.stages > 1 or max_restarts) and not dry_run:
        from ppll import fork_server

        fork_server.warm_up()
    from ppll.live import LiveView, show_blocks, show_result
    from ppll.trainer import Trainer, default_folder

    console = Console(stderr=True)
    _show_log(console, quiet=quiet)
    trainer = Trainer(
        loaded,
        out=out or default_folder(recipe),
        resume=resume,
        allow_change=allow_change or (),
        max_restarts=max_restarts,
    )
    if dry_run:
        show_blocks(console, trainer.blueprint)
        return
    with LiveView(console, trainer.blueprint, quiet=quiet) as view:
        trainer.watch = view.update
        result = trainer.fit()
    show_result(Console(), result)


@app.command("eval")
def evaluate_run(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    stages: Stages = 1,
    as_json: Json = False,
) -> None:
    """Evaluate every exit of a run's newest checkpoint."""
    from dataclasses import asdict

    from ppll.evaluation import evaluate
    from ppll.live import show_result

    result = evaluate(run, stages or 1)
    if as_json:
        _print_json(asdict(result))
    else:
        show_result(Console(), result)


@app.command("export")
def export_run(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    to: Annotated[Path, typer.Option("--to", help="The .safetensors file to write.")],
) -> None:
    """Write the plain trained network, without auxiliary networks."""
    from ppll.exporting import export

    step = export(run, to)
    Console().print(f"{to}: the network after step {step}", highlight=False, soft_wrap=True)


@app.command("doctor")
def examine_machine(as_json: Json = False) -> None:
    """Check what this machine can do, and say how to mend what it cannot."""
    from dataclasses import asdict

    from ppll.doctor import examine

    findings = examine()
    if as_json:
        _print_json({"rows": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            advice = f"\n        {finding.advice}" if finding.advice else ""
            line = f"{finding.state:<8}{finding.name:<25}{finding.found}{advice}"
            Console().print(line, highlight=False, soft_wrap=True, markup=False)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


@app.command("methods")
def list_methods(as_json: Json = False) -> None:
    """List the methods of local learning."""
    from ppll.methods import describe_methods

    rows = describe_methods()
    _print_rows("Methods", rows, as_json)


@app.command("models")
def list_models(as_json: Json = False) -> None:
    """List the networks."""
    from ppll.models import models

    rows = [{"name": e.name, "summary": e.summary, "options": sorted(e.options)} for e in models]
    _print_rows("Models", rows, as_json)


@app.command("datasets")
def list_datasets(as_json: Json = False) -> None:
    """List the data sets."""
    from ppll.data import datasets

    rows = [{"name": e.name, "summary": e.summary, "options": sorted(e.options)} for e in datasets]
    _print_rows("Data sets", rows, as_json)


@app.command("recipes")
def list_recipes(as_json: Json = False) -> None:
    """List the shipped recipes."""
    from ppll.recipe_files import load_recipe, shipped_recipes

    recipes = {name: load_recipe(name) for name in sorted(shipped_recipes())}
    rows = [
        {
            "name": name,
            "data": r.data.name,
            "model": r.model.name,
            "method": r.method.name,
            "blocks": r.split.blocks,
            "epochs": r.train.epochs,
        }
        for name, r in recipes.items()
    ]
    _print_rows("Recipes", rows, as_json)


@app.command("env")
def show_environment(as_json: Json = False) -> None:
    """Print what a bug report needs."""
    from ppll.environment import describe_environment

    described = describe_environment()
    if as_json:
        _print_json(described)
    else:
        for key, value in described.items():
            Console().print(f"[bold]{key}[/bold]: {value}", soft_wrap=True)


def _load(recipe: str, stages: int | None, settings: list[str] | None) -> Recipe:
    from ppll.recipe_files import load_recipe

    settings = list(settings or [])
    if stages is not None:
        settings.append(f"runtime.stages={stages}")
    return load_recipe(recipe, settings)


def _show_log(console: Console, *, quiet: bool) -> None:
    """Let what the package logs appear above the progress bar."""
    import logging

    from rich.logging import RichHandler

    handler = RichHandler(console=console, show_time=False, show_path=False, show_level=False)
    logger = logging.getLogger("ppll")
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


def _print_rows(title: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        _print_json({"rows": rows})
        return
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for key in rows[0] if rows else ():
        table.add_column(key)
    for row in rows:
        table.add_row(*(", ".join(v) if isinstance(v, list) else str(v) for v in row.values()))
    Console().print(table)


def _print_json(tree: Any) -> None:
    sys.stdout.write(json.dumps(tree, indent=2) + "\n")


def main() -> NoReturn:
    """Run the command and leave: 0 done, 1 the run failed, 2 it cannot be, 130 interrupted."""
    try:
        app()  # ends in SystemExit, with code 2 for a command line that cannot be
    except UsageError as error:
        _fail(error, 2)
    except Interrupted as error:
        _fail(error, 130)
    except PpllError as error:
        _fail(error, 1)
    sys.exit(0)


def _fail(error: PpllError, code: int) -> NoReturn:
    sys.stderr.write(f"{type(error).__name__}: {error}\n")
    sys.exit(code)
