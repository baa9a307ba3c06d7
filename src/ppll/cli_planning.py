"""Commands that tell beforehand what to expect: ``plan`` and ``bench`` (no torch)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ppll.cli_options import Json, RecipeArgument, Settings, Stages, give_json, load
from ppll.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from ppll.bench.emulate import Devices
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
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, help="Choose stages and train.replicas for so many processes."
        ),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="NEW.toml",
            help="Write the recipe with its cuts, and what --processes chose, written out.",
        ),
    ] = None,
    bandwidth: Bandwidth = 5.0,
    latency: Latency = 50.0,
    memory_limit: Annotated[
        float | None,
        typer.Option(metavar="MIB", help="Most memory of a block, for balanced cuts."),
    ] = None,
    json: Json = None,
) -> None:
    """Predict what a recipe takes, beside its rivals; choose balanced cuts and replicas."""
    from ppll.plan import draw_plan
    from ppll.planning_view import show_choices, show_plan
    from ppll.processes import choose, list_choices, verdict
    from ppll.rivals import predict_rivals, recommend

    if processes is not None and stages is not None:
        raise UsageError("--processes chooses the stages: leave out --stages, or --processes.")
    loaded = load(recipe, None, settings)
    limit = None if memory_limit is None else int(memory_limit * 2**20)
    link = _link(bandwidth, latency)
    measured = _costs(loaded, costs)
    if processes is None:
        num_stages = stages or loaded.split.blocks
        choices = []
        plan = draw_plan(loaded, measured, num_stages, link, memory_limit_bytes=limit)
        planned = plan.recipe
    else:
        choices = list_choices(loaded, measured, processes, link, memory_limit_bytes=limit)
        plan, planned = choose(choices).plan, choose(choices).recipe
    rivals = predict_rivals(plan, processes)
    if write is not None:
        write.write_text(planned.to_toml(), encoding="utf-8")
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
    if not give_json(json, tree):
        console = Console()
        show_plan(console, plan, rivals)
        if choices:
            show_choices(console, choices)


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
    console = Console(stderr=True)
    console.print("measuring costs ...", highlight=False)
    from ppll.decoding_view import decoding_shown
    from ppll.measuring import measure

    with decoding_shown(console):
        measured = measure(recipe)
    if file is not None:
        measured.write(file)
    return measured


bench = typer.Typer(help="Measure PPLL beside its rivals.", no_args_is_help=True)


@bench.command("emulate")
def bench_emulate(
    stages: Annotated[int, typer.Option(min=1, max=64, help="Devices.")] = 4,
    forward_ms: Annotated[float, typer.Option(help="Forward of a device's part.")] = 10.0,
    backward_ms: Annotated[float, typer.Option(help="Backward of a device's part.")] = 20.0,
    auxiliary_ms: Annotated[float, typer.Option(help="Of a block's auxiliary network.")] = 0.9,
    payload_mib: Annotated[float, typer.Option(help="What crosses a boundary.")] = 4.0,
    parameter_mib: Annotated[float, typer.Option(help="Of a device's part, for ddp.")] = 16.0,
    batches: Annotated[int, typer.Option(min=1, help="Batches that are timed.")] = 60,
    systems: Annotated[
        str, typer.Option(help="Separated by commas.")
    ] = "ppll,sequential,gpipe,1f1b,interleaved,zero-bubble,zero-bubble-v",
    microbatches: Annotated[str, typer.Option(help="Separated by commas.")] = "4,8,16",
    capacity: Annotated[int, typer.Option(min=1, max=64, help="Slots of a channel.")] = 4,
    recipe: Annotated[
        str | None, typer.Option(help="With --costs: the recipe to measure them for.")
    ] = None,
    settings: Settings = None,
    costs: CostsFile = None,
    slow_down: Annotated[float, typer.Option(help="With --costs: longer times by so much.")] = 1.0,
    json: Json = None,
) -> None:
    """Emulate devices by sleeping: PPLL and its rivals, measured and ideal."""
    from ppll.bench.emulate import Devices, emulate, summary

    if recipe is not None or costs is not None:
        devices = _devices_of(recipe, settings, costs, stages, slow_down)
    else:
        times = {"forward_s": forward_ms, "backward_s": backward_ms, "auxiliary_s": auxiliary_ms}
        devices = Devices.even(
            stages,
            payload_bytes=int(payload_mib * 2**20),
            parameter_bytes=int(parameter_mib * 2**20),
            **{name: ms / 1e3 for name, ms in times.items()},
        )
    console = Console(stderr=True)
    rows = emulate(
        devices,
        systems.split(","),
        num_batches=batches,
        microbatches=_numbers(microbatches),
        capacity=capacity,
        seen=lambda row: console.print(_line(row.to_dict()), highlight=False),
        noted=lambda note: console.print(note, highlight=False),
    )
    tree = _measured([row.to_dict() for row in rows], summary(rows))
    if not give_json(json, tree):
        Console().print(summary(rows), highlight=False)


def _devices_of(
    recipe: str | None, settings: list[str] | None, file: Path | None, stages: int, slow_down: float
) -> Devices:
    """Devices as fast as measured costs say, one for each block of balanced cuts."""
    from ppll.bench.emulate import Devices
    from ppll.config import Recipe
    from ppll.costs import Costs
    from ppll.plan import draw_plan

    cuts = [f"split.blocks={stages}", "split.cuts=balanced"]
    if recipe is not None:
        loaded = load(recipe, None, [*cuts, *(settings or [])])
        costs = _costs(loaded, file)
    else:
        assert file is not None
        costs = Costs.read(file)
        loaded = Recipe.from_dict(costs.recipe).with_settings(cuts)
    plan = draw_plan(loaded, costs, stages, _link(5.0, 50.0))
    Console(stderr=True).print(f"sum of blocks to slowest block: {plan.bound:.3f}", highlight=False)
    return Devices.of_plan(plan, slow_down)


def _measured(rows: list[dict[str, Any]], summary: str = "") -> dict[str, Any]:
    """Rows with what they say, the command that made them, and the machine."""
    from ppll.environment import describe_environment

    load = list(os.getloadavg())
    return {
        "summary": summary,
        "rows": rows,
        "command": ["ppll", *sys.argv[1:]],
        "environment": {**describe_environment(), "load_average": load},
    }


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"cannot read {text!r}: write whole numbers as in 4,8,16.") from None


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['system']:<12} {row['stages']} device(s) {row['microbatches']:>3} micro-batches: "
        f"{1e3 * row['seconds_per_batch']:8.2f} ms a batch, ideal "
        f"{1e3 * row['ideal_seconds_per_batch']:8.2f}, efficiency {row['efficiency']:.3f}"
    )


@bench.command("compare")
def bench_compare(
    recipe: RecipeArgument,
    stages: Stages = 2,
    settings: Settings = None,
    systems: Annotated[str | None, typer.Option(help="Separated by commas; all without.")] = None,
    microbatches: Annotated[str, typer.Option(help="Of pipelines, separated by commas.")] = "2,4,8",
    accumulate: Annotated[str, typer.Option(help="Messages a batch of PPLL.")] = "2,4",
    repeats: Annotated[int, typer.Option(help="How often all are timed, in turn.")] = 3,
    batches: Annotated[int, typer.Option(help="Batches that are timed.")] = 20,
    warm_up: Annotated[int, typer.Option(help="Batches before them.")] = 3,
    epochs: Annotated[
        int | None, typer.Option(help="Train by every system for so long, too, and test it.")
    ] = None,
    costs: CostsFile = None,
    json: Json = None,
) -> None:
    """Train for real by PPLL and its rivals, side by side."""
    from ppll.bench.compare import SYSTEMS, compare, summary
    from ppll.decoding_view import decoding_shown

    loaded = load(recipe, None, settings)
    console = Console(stderr=True)
    with decoding_shown(console):
        rows = compare(
            loaded,
            stages or 2,
            systems.split(",") if systems else SYSTEMS,
            microbatches=_numbers(microbatches),
            accumulate=_numbers(accumulate),
            repeats=repeats,
            num_batches=batches,
            warm_up=warm_up,
            epochs=epochs,
            costs=None if costs is None else _costs(loaded, costs),
            noted=lambda note: console.print(note, highlight=False),
        )
    tree = _measured([row.to_dict() for row in rows], summary(rows))
    if not give_json(json, tree):
        from ppll.planning_view import comparison

        Console().print(comparison(rows))
        Console().print(f"\n{summary(rows)}", highlight=False)


@bench.command("channels")
def bench_channels(
    sizes: Annotated[str | None, typer.Option(help="KiB, separated by commas.")] = None,
    capacity: Annotated[int, typer.Option(min=1, max=64, help="Messages in flight.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="How often all are timed.")] = 3,
    json: Json = None,
) -> None:
    """Time a message between two processes: PPLL's channel and what there is otherwise."""
    from ppll.bench.channels import SIZES, measure_channels

    console = Console(stderr=True)
    rows = measure_channels(
        [1024 * size for size in _numbers(sizes)] if sizes else SIZES,
        capacity=capacity,
        repeats=repeats,
        seen=lambda row: console.print(_channel_line(row.to_dict()), highlight=False),
    )
    give_json(json, _measured([row.to_dict() for row in rows]))


def _channel_line(row: dict[str, Any]) -> str:
    return (
        f"{row['transport']:<22} {row['bytes'] / 1024:>8,.0f} KiB: "
        f"alone {row['microseconds']:8.1f} us, "
        f"streaming {row['microseconds_per_message']:8.1f} us a message, "
        f"{row['gigabytes_per_second']:6.2f} GB/s"
    )
