"""``ppll bench``: PPLL beside its rivals (no torch)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ppll.cli.options import Json, RecipeArgument, Settings, Stages, bytes_of, give_json, load
from ppll.cli.plan import CostsFile, costs_of, link_of
from ppll.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from ppll.bench.emulated_devices import Devices

__all__ = ["bench"]

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
    from ppll.bench.emulate import emulate, summary
    from ppll.bench.emulated_devices import Devices

    if recipe is not None or costs is not None:
        devices = _devices_of(recipe, settings, costs, stages, slow_down)
    else:
        if settings or slow_down != 1:
            raise UsageError(
                "--set and --slow-down are for devices as fast as measured costs say: give "
                "--recipe or --costs, too, or leave them out."
            )
        times = {"forward_s": forward_ms, "backward_s": backward_ms, "auxiliary_s": auxiliary_ms}
        devices = Devices.even(
            stages,
            payload_bytes=bytes_of("--payload-mib", payload_mib),
            parameter_bytes=bytes_of("--parameter-mib", parameter_mib),
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
    """Devices as fast as measured costs say, one for each block of balanced cuts; of a recipe with
    replicas, one for each replica of its own blocks."""
    from ppll.bench.emulated_devices import Devices
    from ppll.config import Recipe
    from ppll.planning.costs import Costs
    from ppll.planning.plan import draw_plan

    settings = settings or []
    if recipe is not None:
        loaded = load(recipe, None, settings)
    else:
        assert file is not None
        loaded = Recipe.from_dict(Costs.read(file).recipe).with_settings(settings)
    if loaded.most_replicas == 1:
        cuts = [f"split.blocks={stages}", "split.cuts=balanced"]
        loaded = loaded.with_settings([*cuts, *settings])
    costs = costs_of(loaded, file)
    plan = draw_plan(loaded, costs, loaded.split.blocks, link_of(5.0, 50.0))
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
    """Train for real by PPLL and its rivals, side by side, on the recipe's devices.

    On GPUs a rival needs one for each of its ranks; what cannot take part is left out, and said.
    """
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
            costs=None if costs is None else costs_of(loaded, costs),
            noted=lambda note: console.print(note, highlight=False),
        )
    tree = _measured([row.to_dict() for row in rows], summary(rows))
    if not give_json(json, tree):
        from ppll.planning.view import show_comparison

        show_comparison(Console(), rows)
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
