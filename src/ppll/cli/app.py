"""The command line: parse, delegate, print (no torch until a command needs it)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from ppll.cli.bench import bench
from ppll.cli.lists import (
    list_datasets,
    list_methods,
    list_models,
    list_recipes,
    show_environment,
)
from ppll.cli.looking import report_runs, trace_run
from ppll.cli.options import (
    Best,
    Json,
    RecipeArgument,
    Settings,
    Stages,
    Step,
    give_json,
    load,
    with_json_printed,
)
from ppll.cli.plan import plan_recipe
from ppll.cli.study import study_recipes
from ppll.errors import Interrupted, PpllError, UsageError
from ppll.interrupts import Interrupts, leaving_at_once
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
Out = Annotated[Path | None, typer.Option(help="Run folder; runs/<recipe>-<time> by default.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on from the newest whole checkpoint in --out, if any."),
]
AllowChange = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-change",
        metavar="SECTION.KEY",
        help="With --resume: a key that may differ although it changes what is trained.",
    ),
]
MaxRestarts = Annotated[
    int, typer.Option("--max-restarts", min=0, help="Restarts after a failure, without asking.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and show the blocks; train nothing.")
]


@app.command()
def train(
    recipe: RecipeArgument,
    stages: Stages = None,
    settings: Settings = None,
    out: Out = None,
    resume: Resume = False,
    allow_change: AllowChange = None,
    max_restarts: MaxRestarts = 0,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Train a recipe and print what it reached."""
    if resume and out is None:
        raise UsageError("--resume needs --out: the folder of the run to go on with.")
    if allow_change and not resume:
        raise UsageError(
            f"--allow-change {allow_change[0]} needs --resume: a run that begins anew has nothing "
            f"that could differ."
        )
    console = Console(stderr=True)
    quiet = quiet or not is_first_process()
    _show_log(console, quiet=quiet)
    loaded = load(recipe, stages, settings)
    starts_processes = (loaded.has_processes or max_restarts) and not started_by_torchrun()
    with _starting(warm=bool(starts_processes and not dry_run)):
        from ppll.live import show_blocks, show_result
        from ppll.trainer import Trainer

        trainer = Trainer(
            loaded,
            out=out,
            name=recipe,
            resume=resume,
            allow_change=allow_change or (),
            max_restarts=max_restarts,
            progress=False if quiet else console,
        )
    if dry_run:
        step = trainer.check()
        show_blocks(console, trainer.blueprint)
        if resume:
            line = _where_it_begins(step, trainer.blueprint.num_steps, out)
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        return
    result = trainer.fit()
    if is_first_process():
        show_result(Console(), result)


def _where_it_begins(step: int, num_steps: int, out: Path | None) -> str:
    if not step:
        return f"{out} holds no checkpoint to go on from: would begin at step 0"
    if step == num_steps:
        return f"finished already at step {step}: nothing is left to train"
    return f"would go on from step {step}"


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
    step: Step = None,
    json: Json = None,
) -> None:
    """Evaluate every exit of a run's newest checkpoint, or of another one."""
    if exits:
        _evaluate_exits(run, stages or 1, thresholds, json, best=best, step=step)
        return
    if thresholds:
        raise UsageError("--thresholds needs --exits: only there samples leave early.")
    from dataclasses import asdict

    from ppll.decoding_view import decoding_shown
    from ppll.live import show_evaluation
    from ppll.trained.evaluation import evaluate

    with decoding_shown(Console(stderr=True)):
        result = evaluate(run, stages or 1, best=best, step=step)
    if not give_json(json, asdict(result)):
        show_evaluation(Console(), result)


def _evaluate_exits(
    run: Path,
    stages: int,
    thresholds: list[str] | None,
    json: Path | None,
    *,
    best: bool,
    step: int | None,
) -> None:
    if stages > 1:
        raise UsageError(
            f"--exits works in one process, found --stages {stages}: leave --stages out."
        )
    from ppll.decoding_view import decoding_shown
    from ppll.trained.evaluation import evaluate_exits
    from ppll.trained.exits import THRESHOLDS
    from ppll.trained.exits_view import show_exits

    wanted = _probabilities(thresholds) if thresholds else THRESHOLDS
    with decoding_shown(Console(stderr=True)):
        report = evaluate_exits(run, wanted, best=best, step=step)
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
    step: Step = None,
) -> None:
    """Write the plain trained network, without auxiliary networks."""
    from ppll.trained.exporting import export

    found = export(run, to, best=best, step=step)
    Console().out(f"{to}: the network after step {found}", highlight=False)


@app.command("doctor")
def examine_machine(json: Json = None) -> None:
    """Check what this machine can do, and say how to mend what it cannot."""
    from dataclasses import asdict

    from ppll.doctor import conclude, examine

    findings = examine()
    if not give_json(json, {"rows": [asdict(finding) for finding in findings]}):
        for finding in findings:
            advice = f"\n        {finding.advice}" if finding.advice else ""
            line = f"{finding.state:<8}{finding.name:<25}{finding.found}{advice}"
            Console().print(line, highlight=False, soft_wrap=True, markup=False)
        Console().print(conclude(findings), highlight=False)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


app.command("plan")(plan_recipe)
app.command("study")(study_recipes)
app.command("trace")(trace_run)
app.command("report")(report_runs)
app.add_typer(bench, name="bench")
app.command("methods")(list_methods)
app.command("models")(list_models)
app.command("datasets")(list_datasets)
app.command("recipes")(list_recipes)
app.command("env")(show_environment)


@contextmanager
def _starting(*, warm: bool) -> Iterator[None]:
    """Import torch and read data, here and, to be ``warm``, in the process that ranks come from."""
    from ppll import fork_server

    with leaving_at_once(fork_server.temporary_folder() if warm else None):
        if warm:
            fork_server.warm_up()
        yield


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
        with Interrupts(most=0):  # Typer would end without a word.
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
        notes = "".join(f"{note}\n" for note in getattr(error, "__notes__", ()))
        sys.stderr.write(f"{type(error).__name__}: {error}\n{notes}")
    sys.exit(code)
