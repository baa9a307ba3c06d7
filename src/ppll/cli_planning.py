"""Commands that tell beforehand what to expect: ``plan`` and ``bench`` (no torch)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ppll.cli_options import Json, RecipeArgument, Settings, Stages, give_json, load
from ppll.errors import RecipeError

if TYPE_CHECKING:
    from ppll.config import Recipe
    from ppll.costs import Costs
    from ppll.simulate import Link

__all__ = ["bench", "plan_recipe"]

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


def plan_recipe(
    recipe: RecipeArgument,
    stages: Stages = None,
    settings: Settings = None,
    costs: CostsFile = None,
    write: Annotated[
        Path | None,
        typer.Option(metavar="NEW.toml", help="Write the recipe with its cuts written out."),
    ] = None,
    bandwidth: Bandwidth = 5.0,
    latency: Latency = 50.0,
    memory_limit: Annotated[
        float | None,
        typer.Option(metavar="MIB", help="Most memory of a block, for balanced cuts."),
    ] = None,
    json: Json = None,
) -> None:
    """Predict what a recipe takes, beside its rivals; choose balanced cuts."""
    from ppll.plan import draw_plan
    from ppll.planning_view import show_plan
    from ppll.rivals import predict_rivals, recommend

    loaded = load(recipe, None, settings)
    num_stages = stages or loaded.split.blocks
    limit = None if memory_limit is None else int(memory_limit * 2**20)
    link = _link(bandwidth, latency)
    measured = _costs(loaded, costs)
    plan = draw_plan(loaded, measured, num_stages, link, memory_limit_bytes=limit)
    rivals = predict_rivals(plan)
    if write is not None:
        write.write_text(plan.recipe.to_toml(), encoding="utf-8")
    tree = {
        "rows": plan.rows(),
        "rivals": [rival.row() for rival in rivals],
        "samples_per_second": plan.samples_per_second,
        "speedup": plan.speedup,
        "bound": plan.bound,
        "cuts": [block.layers.start for block in plan.blocks[1:]],
        "recommendation": recommend(plan, rivals),
    }
    if not give_json(json, tree):
        show_plan(Console(), plan, rivals)


def _link(bandwidth: float, latency: float) -> Link:
    from ppll.simulate import Link

    return Link(bandwidth_bytes_s=bandwidth * 1e9, latency_s=latency * 1e-6)


def _costs(recipe: Recipe, file: Path | None) -> Costs:
    """Costs from a file; measured now where there is none."""
    from ppll.costs import Costs

    if file is not None and file.exists():
        return Costs.read(file)
    if file is not None and not file.absolute().parent.is_dir():
        raise RecipeError(f"there is no folder for the costs {file}: make it, or choose another.")
    Console(stderr=True).print("measuring costs ...", highlight=False)
    from ppll.measuring import measure

    measured = measure(recipe)
    if file is not None:
        measured.write(file)
    return measured


bench = typer.Typer(help="Measure PPLL beside its rivals.", no_args_is_help=True)
