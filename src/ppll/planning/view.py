"""A plan as tables that a person can read (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from ppll.planning.plan import Plan
from ppll.planning.processes import Choice, choose, verdict
from ppll.planning.recommendation import recommend
from ppll.planning.rivals import Rival
from ppll.tables import print_table

if TYPE_CHECKING:
    from ppll.bench.compare import CompareRow

__all__ = ["show_choices", "show_comparison", "show_plan"]


def show_plan(console: Console, plan: Plan, rivals: Sequence[Rival]) -> None:
    """Print blocks and stages, what they will take, the rivals, and what to take."""
    _show_blocks(console, plan)
    console.print(
        f"\n{plan.samples_per_second:,.0f} samples/s predicted on {_where(plan)}: "
        f"{plan.speedup:.2f} times one stage (bound of these cuts {plan.bound:.2f}); "
        f"{plan.costs.device}, {plan.costs.message_size} samples a message, "
        f"spread of the costs {plan.costs.spread:.0%}\n",
        highlight=False,
    )
    if plan.recipe.most_replicas > 1:
        console.print(f"{_assumption(plan)}\n", highlight=False)
    _show_rivals(console, rivals)
    console.print(f"\n{recommend(plan, rivals)}", highlight=False)


def show_choices(console: Console, choices: Sequence[Choice]) -> None:
    """Print what else the same processes can do, and what to take."""
    names = ["processes as", "replicas", "stages", "processes"]
    names += ["samples/s", "over one stage", "memory"]
    rows = [
        [
            row["way"] + (" (taken)" if choice is choose(choices) else ""),
            _replicas(row["replicas"]),
            str(row["stages"]),
            str(row["processes"]),
            f"{row['samples_per_second']:,.0f}",
            f"{row['speedup']:.2f}x",
            _size(row["memory_bytes"]),
        ]
        for choice in choices
        for row in [choice.row()]
    ]
    console.print()
    print_table(console, names, rows, left=names[:1])
    console.print(f"\n{verdict(choices)}", highlight=False)


def _replicas(replicas: Sequence[int]) -> str:
    """One number where all are alike."""
    return str(replicas[0]) if len(set(replicas)) == 1 else ",".join(map(str, replicas))


def _where(plan: Plan) -> str:
    stages = f"{len(plan.stages)} stage(s)"
    if plan.recipe.most_replicas == 1:
        return stages
    of_stages = _replicas([stage.replicas for stage in plan.stages])
    return f"{plan.num_processes} processes, {stages} with {of_stages} replica(s)"


def _assumption(plan: Plan) -> str:
    """What is taken for granted about a message that is shared."""
    share = plan.costs.fixed_share
    fixed = (
        f"{share:.0%} of the forward and backward passes are the same for a shard, as measured "
        f"with fewer samples; the rest is taken to shrink with them."
        if share
        else "Forward and backward passes are taken to shrink with the samples: these costs do "
        "not say which part stays. Measure them again, with messages of 8 samples or more."
    )
    return f"{fixed} Updates are not shared; gradients are added up at {_link(plan)}."


def _link(plan: Plan) -> str:
    return f"{plan.link.bandwidth_bytes_s / 1e9:g} GB/s, {plan.link.latency_s * 1e6:g} us"


def show_comparison(console: Console, rows: Sequence[CompareRow]) -> None:
    """Print what was measured of every system."""
    memory = "peak on GPU" if all(row.is_on_gpus for row in rows) else "peak memory"
    names = f"system|ranks|device|pieces|samples/s|over one stage|{memory}|sent a batch|accuracy"
    cells = []
    for row in rows:
        tree = row.to_dict()
        cells.append(
            [
                row.system,
                str(row.stages),
                _devices(row),
                str(row.microbatches),
                f"{tree['samples_per_second']:,.1f}",
                f"{tree['speedup']:.2f}x" if tree["speedup"] else "",
                _peak(row),
                _size(sum(row.bytes_sent)),
                f"{row.accuracy:.2%}" if row.accuracy is not None else "",
            ]
        )
    print_table(console, names.split("|"), cells, left=("system", "device"))


def _devices(row: CompareRow) -> str:
    """Processors, or the number of every rank's GPU: "cpu", "cuda:0,1"."""
    numbers = ",".join(device.removeprefix("cuda:") for device in row.gpus)
    return " ".join(["cpu"] * ("cpu" in row.devices) + [f"cuda:{numbers}"] * bool(numbers))


def _peak(row: CompareRow) -> str:
    """Of the fullest rank; memory of processors and of GPUs does not compare."""
    is_of_a_kind = not row.gpus or row.is_on_gpus
    return _size(max(row.peak_memory_bytes)) if is_of_a_kind else ""


def _show_blocks(console: Console, plan: Plan) -> None:
    shares = plan.recipe.most_replicas > 1
    middle = "replicas|forward|learn|add up" if shares else "forward|learn"
    names = f"stage|block|layers|{middle}|auxiliary|sends|memory|idle".split("|")
    rows = []
    for row, block in zip(plan.rows(), plan.blocks, strict=True):
        first_of_stage = plan.stages[row["stage"]].blocks.start == row["block"]
        is_last = row["block"] == len(plan.blocks) - 1
        sharing = [str(block.replicas)] if shares else []
        adding_up = [_milliseconds(block.add_up_s)] if shares else []
        rows.append(
            [
                str(row["stage"]) if first_of_stage else "",
                str(row["block"]),
                block.first if len(block.layers) == 1 else f"{block.first} .. {block.last}",
                *sharing,
                _milliseconds(block.forward_s),
                _milliseconds(block.learn_s),
                *adding_up,
                f"{block.auxiliary_share:.0%}",
                "" if is_last else _size(block.features_bytes),
                _size(row["stage_memory_bytes"]) if first_of_stage else "",
                f"{row['stage_idle']:.0%}" if first_of_stage else "",
            ]
        )
    print_table(console, names, rows, left=("layers",))


def _show_rivals(console: Console, rivals: Sequence[Rival]) -> None:
    names = ["predicted", "devices", "micro-batches", "samples/s", "PPLL is", "idle", "memory"]
    ours = rivals[0].samples_per_second
    rows = [
        [
            rival.system,
            str(rival.devices),
            str(rival.microbatches),
            f"{rival.samples_per_second:,.0f}",
            f"{ours / rival.samples_per_second:.2f}x",
            f"{rival.idle:.0%}",
            _size(rival.memory_bytes),
        ]
        for rival in rivals
    ]
    print_table(console, names, rows, left=("predicted",))


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
