"""The command line: parse, delegate, print (no torch until a command needs it)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from ppll.cli_looking import report_runs, trace_run
from ppll.cli_options import (
    Best,
    Json,
    RecipeArgument,
    Settings,
    Stages,
    give_json,
    give_rows,
    load,
    with_json_printed,
)
from ppll.cli_planning import bench, plan_recipe
from ppll.cli_study import study_recipes
from ppll.errors import Interrupted, PpllError, UsageError
from ppll.torchrun import is_first_process, speaks_for_its_host, started_by_torchrun

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
    loaded = load(recipe, stages, settings)
    starts_processes = (loaded.runtime.stages > 1 or max_restarts) and not started_by_torchrun()
    if starts_processes and not dry_run:
        from ppll import fork_server

        fork_server.warm_up()
    from ppll.decoding_view import decoding_shown
    from ppll.live import LiveView, show_blocks, show_result
    from ppll.trainer import Trainer, default_folder

    console = Console(stderr=True)
    quiet = quiet or not is_first_process()
    _show_log(console, quiet=quiet)
    with decoding_shown(console, quiet=quiet):
        trainer = Trainer(
            loaded,
            out=out if out or started_by_torchrun() else default_folder(recipe),
            resume=resume,
            allow_change=allow_change or (),
            max_restarts=max_restarts,
        )
    if dry_run:
        show_blocks(console, trainer.blueprint)
        return
    with LiveView(console, trainer.blueprint, quiet=quiet) as view:
        trainer.watch = view.update
        trainer.callbacks.append(view)
        result = trainer.fit()
    if is_first_process():
        show_result(Console(), result)


@app.command("eval")
def evaluate_run(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    stages: Stages = 1,
    exits: Annotated[
        bool,
        typer.Option("--exits", help="Also all exits together, and leaving early when sure."),
    ] = False,
    thresholds: Annotated[
        list[str] | None,
        typer.Option(
            metavar="P,...",
            help="With --exits: probabilities at which a sample leaves, above 0 and at most 1.",
        ),
    ] = None,
    best: Best = False,
    json: Json = None,
) -> None:
    """Evaluate every exit of a run's newest checkpoint."""
    if exits:
        _evaluate_exits(run, stages or 1, thresholds, json, best=best)
        return
    if thresholds:
        raise UsageError("--thresholds needs --exits: only there samples leave early.")
    from dataclasses import asdict

    from ppll.decoding_view import decoding_shown
    from ppll.evaluation import evaluate
    from ppll.live import show_result

    with decoding_shown(Console(stderr=True)):
        result = evaluate(run, stages or 1, best=best)
    if not give_json(json, asdict(result)):
        show_result(Console(), result)


def _evaluate_exits(
    run: Path, stages: int, thresholds: list[str] | None, json: Path | None, *, best: bool
) -> None:
    if stages > 1:
        raise UsageError(
            f"--exits works in one process, found --stages {stages}: leave --stages out."
        )
    from ppll.decoding_view import decoding_shown
    from ppll.evaluation import evaluate_exits
    from ppll.exits import THRESHOLDS
    from ppll.exits_view import show_exits

    wanted = _probabilities(thresholds) if thresholds else THRESHOLDS
    with decoding_shown(Console(stderr=True)):
        report = evaluate_exits(run, wanted, best=best)
    if not give_json(json, report.to_dict()):
        show_exits(Console(), report)


def _probabilities(texts: list[str]) -> list[float]:
    """Numbers of options, each of which may hold several."""
    text = ",".join(texts)
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"cannot read --thresholds {text!r}: write numbers above 0 and at most 1, as in "
            f"0.8,0.9."
        ) from None


@app.command("export")
def export_run(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    to: Annotated[Path, typer.Option("--to", help="The .safetensors file to write.")],
    best: Best = False,
) -> None:
    """Write the plain trained network, without auxiliary networks."""
    from ppll.exporting import export

    step = export(run, to, best=best)
    Console().print(f"{to}: the network after step {step}", highlight=False, soft_wrap=True)


@app.command("doctor")
def examine_machine(json: Json = None) -> None:
    """Check what this machine can do, and say how to mend what it cannot."""
    from dataclasses import asdict

    from ppll.doctor import examine

    findings = examine()
    if not give_json(json, {"rows": [asdict(finding) for finding in findings]}):
        for finding in findings:
            advice = f"\n        {finding.advice}" if finding.advice else ""
            line = f"{finding.state:<8}{finding.name:<25}{finding.found}{advice}"
            Console().print(line, highlight=False, soft_wrap=True, markup=False)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


app.command("plan")(plan_recipe)
app.command("study")(study_recipes)
app.command("trace")(trace_run)
app.command("report")(report_runs)
app.add_typer(bench, name="bench")


@app.command("methods")
def list_methods(json: Json = None) -> None:
    """List the methods of local learning and what they ask for."""
    from ppll.zoo import as_table, describe_methods

    rows = describe_methods()
    if not give_json(json, {"rows": rows}):
        give_rows("Methods", as_table(rows), None)


@app.command("models")
def list_models(json: Json = None) -> None:
    """List the networks."""
    from ppll.models import models
    from ppll.models.libraries import LIBRARIES

    rows = [{"name": e.name, "summary": e.summary, "options": sorted(e.options)} for e in models]
    for library, (_, summary) in LIBRARIES.items():
        rows.append({"name": f"{library}:NAME", "summary": summary, "options": ["of the library"]})
    give_rows("Models", rows, json)


@app.command("datasets")
def list_datasets(json: Json = None) -> None:
    """List the data sets."""
    from ppll.data import datasets

    rows = [{"name": e.name, "summary": e.summary, "options": sorted(e.options)} for e in datasets]
    give_rows("Data sets", rows, json)


@app.command("recipes")
def list_recipes(json: Json = None) -> None:
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
    give_rows("Recipes", rows, json)


@app.command("env")
def show_environment(json: Json = None) -> None:
    """Print what a bug report needs."""
    from ppll.environment import describe_environment

    described = describe_environment()
    if not give_json(json, described):
        for key, value in described.items():
            Console().print(f"[bold]{key}[/bold]: {value}", soft_wrap=True)


def _show_log(console: Console, *, quiet: bool) -> None:
    """Let what the package logs appear above the progress bar."""
    import logging

    from rich.logging import RichHandler

    handler = RichHandler(console=console, show_time=False, show_path=False, show_level=False)
    logger = logging.getLogger("ppll")
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


def main() -> NoReturn:
    """Run the command and leave: 0 done, 1 the run failed, 2 it cannot be, 130 interrupted."""
    sys.argv[1:] = with_json_printed(sys.argv[1:])
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
    if speaks_for_its_host():
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    sys.exit(code)
