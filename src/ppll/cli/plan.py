"""``ppll plan``: what to expect of a recipe (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ppll.cli.options import Json, RecipeArgument, Settings, Stages, bytes_of, give_json, load
from ppll.durable import write_asked
from ppll.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from ppll.config import Recipe
    from ppll.planning.costs import Costs
    from ppll.planning.plan import Plan
    from ppll.planning.processes import Choice
    from ppll.planning.rivals import Rival
    from ppll.simulation.simulate import Link

__all__ = ["CostsFile", "costs_of", "link_of", "plan_recipe"]

CostsFile = Annotated[
    Path | None,
    typer.Option(
        "--costs",
        metavar="FILE",
        help="Measured costs: read, or measured now and written there where there is none.",
    ),
]
Bandwidth = Annotated[
    float, typer.Option("--bandwidth", metavar="GB/S", help="Of the link between two stages.")
]
Latency = Annotated[
    float, typer.Option("--latency", metavar="US", help="Of the link between two stages, in us.")
]


Processes = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="Choose stages and train.replicas for so many processes."),
]
Write = Annotated[
    Path | None,
    typer.Option(
        metavar="NEW.toml",
        help="Write the recipe with its cuts, and what --processes chose, written out.",
    ),
]
MemoryLimit = Annotated[
    float | None, typer.Option(metavar="MIB", help="Most memory of a block, for balanced cuts.")
]


def plan_recipe(
    recipe: RecipeArgument,
    stages: Stages = None,
    settings: Settings = None,
    costs: CostsFile = None,
    processes: Processes = None,
    write: Write = None,
    bandwidth: Bandwidth = 5.0,
    latency: Latency = 50.0,
    memory_limit: MemoryLimit = None,
    json: Json = None,
) -> None:
    """Predict what a recipe takes, beside its rivals; choose balanced cuts and replicas.

    Every block has a stage of its own, unless the recipe asks for several stages (runtime.stages),
    or an option says otherwise.
    """
    from ppll.planning.plan import draw_plan
    from ppll.planning.processes import choose, list_choices
    from ppll.planning.rivals import predict_rivals
    from ppll.planning.view import show_choices, show_plan

    if write is not None:
        _check_target(write)
    if processes is not None and stages is not None:
        raise UsageError("--processes chooses the stages: leave out --stages, or --processes.")
    loaded = load(recipe, None, settings)
    limit = None if memory_limit is None else bytes_of("--memory-limit", memory_limit)
    if limit is not None and processes is None and loaded.split.cuts != "balanced":
        raise UsageError(
            "--memory-limit chooses among balanced cuts, and these are given: add "
            "--set split.cuts=balanced, or leave it out."
        )
    link = link_of(bandwidth, latency)
    measured = costs_of(loaded, costs)
    if processes is None:
        asked_for = stages or loaded.runtime.stages
        num_stages = asked_for if stages or asked_for > 1 else loaded.split.blocks
        choices = []
        plan = draw_plan(loaded, measured, num_stages, link, memory_limit_bytes=limit)
        planned = plan.recipe.with_settings([f"runtime.stages={stages}"] if stages else [])
    else:
        choices = list_choices(loaded, measured, processes, link, memory_limit_bytes=limit)
        plan, planned = choose(choices).plan, choose(choices).recipe
    rivals = predict_rivals(plan, processes)
    console = Console()
    if not give_json(json, _tree(plan, rivals, choices)):
        show_plan(console, plan, rivals)
        if choices:
            show_choices(console, choices)
        _note_cores(console, plan)
    if write is not None:
        write_asked(write, planned.to_toml().encode())
        Console(stderr=True).out(f"wrote {write}", highlight=False)


def _tree(plan: Plan, rivals: Sequence[Rival], choices: Sequence[Choice]) -> dict[str, Any]:
    """All of it, ready for JSON."""
    from ppll.planning.processes import verdict
    from ppll.planning.recommendation import recommend

    tree = {
        "rows": plan.rows(),
        "rivals": [rival.row() for rival in rivals],
        "samples_per_second": plan.samples_per_second,
        "speedup": plan.speedup,
        "bound": plan.bound,
        "processes": plan.num_processes,
        "cuts": [block.layers.start for block in plan.blocks[1:]],
        "recommendation": recommend(plan, rivals),
    }
    if choices:
        tree |= {"choices": [choice.row() for choice in choices], "verdict": verdict(choices)}
    return tree


def _note_cores(console: Console, plan: Plan) -> None:
    """Say that this machine cannot do what is predicted, where it was measured here."""
    from ppll.environment import describe_processor
    from ppll.limits import num_cores

    cores, wanted = num_cores(), plan.num_processes * plan.recipe.train.threads_per_stage
    if plan.costs.device == describe_processor() and wanted > cores:
        console.print(
            f"\nPredicted for {wanted} processors; this machine has {cores:g}, which the processes "
            f"would share.",
            highlight=False,
        )


def _check_target(file: Path) -> None:
    """Before anything is measured: nothing is written over, and the name is a recipe's."""
    if file.suffix != ".toml":
        raise UsageError(f"--write {file}: a recipe is a .toml file; give such a name.")
    if file.exists():
        raise UsageError(f"--write {file}: it exists already. Choose another name, or remove it.")


def link_of(bandwidth: float, latency: float) -> Link:
    """A link as the options say, in GB/s and us."""
    from ppll.simulation.simulate import Link

    return Link(bandwidth_bytes_s=bandwidth * 1e9, latency_s=latency * 1e-6)


def costs_of(recipe: Recipe, file: Path | None) -> Costs:
    """Costs from a file; measured now where there is none."""
    from ppll.planning.costs import Costs

    if file is not None and file.exists():
        return Costs.read(file)
    if file is not None and not file.absolute().parent.is_dir():
        raise RecipeError(f"there is no folder for the costs {file}: make it, or choose another.")
    console = Console(stderr=True)
    console.print("measuring costs ...", highlight=False)
    from ppll.decoding_view import decoding_shown
    from ppll.planning.measuring import measure

    with decoding_shown(console):
        measured = measure(recipe)
    if file is not None:
        measured.write(file)
    return measured
