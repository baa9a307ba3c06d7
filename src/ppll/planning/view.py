"""A plan as tables that a person can read (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ppll.planning.plan import Plan
from ppll.planning.processes import Choice, choose, verdict
from ppll.planning.rivals import Rival, recommend

if TYPE_CHECKING:
    from ppll.bench.compare import CompareRow

__all__ = ["comparison", "show_choices", "show_plan"]


def show_plan(console: Console, plan: Plan, rivals: Sequence[Rival]) -> None:
    """Print blocks and stages, what they will take, the rivals, and what to take."""
    console.print(_blocks(plan))
    spread = sorted(layer.spread for layer in plan.costs.layers)[len(plan.costs.layers) // 2]
    console.print(
        f"\n{plan.samples_per_second:,.0f} samples/s predicted on {_where(plan)}: "
        f"{plan.speedup:.2f} times one stage (bound of these cuts {plan.bound:.2f}); "
        f"{plan.costs.device}, {plan.costs.message_size} samples a message, "
        f"spread of the costs {spread:.0%}\n",
        highlight=False,
    )
    if plan.recipe.most_replicas > 1:
        console.print(f"{_assumption(plan)}\n", highlight=False)
    console.print(_rivals(rivals))
    console.print(f"\n{recommend(plan, rivals)}", highlight=False)


def show_choices(console: Console, choices: Sequence[Choice]) -> None:
    """Print what else the same processes can do, and what to take."""
    columns = "processes_as replicas stages processes samples/s over_one_stage memory"
    table = _table(columns, ("processes_as", "replicas"))
    for choice in choices:
        row = choice.row()
        table.add_row(
            row["way"] + (" (taken)" if choice is choose(choices) else ""),
            _replicas(row["replicas"]),
            str(row["stages"]),
            str(row["processes"]),
            f"{row['samples_per_second']:,.0f}",
            f"{row['speedup']:.2f}x",
            _size(row["memory_bytes"]),
        )
    console.print()
    console.print(table)
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


def comparison(rows: Sequence[CompareRow]) -> Table:
    """What was measured of every system."""
    columns = "system ranks pieces samples/s over_one_stage peak_memory sent_a_batch accuracy"
    table = _table(columns, ("system",))
    for row in rows:
        tree = row.to_dict()
        table.add_row(
            row.system,
            str(row.stages),
            str(row.microbatches),
            f"{tree['samples_per_second']:,.1f}",
            f"{tree['speedup']:.2f}x" if tree["speedup"] else "",
            _size(max(row.peak_memory_bytes)),
            _size(sum(row.bytes_sent)),
            f"{row.accuracy:.2%}" if row.accuracy is not None else "",
        )
    return table


def _table(columns: str, left: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns.split():
        title = name.replace("_", " ")
        table.add_column(
            title, justify="left" if name in left else "right", no_wrap=name == "system"
        )
    return table


def _blocks(plan: Plan) -> Table:
    shares = plan.recipe.most_replicas > 1
    middle = "replicas forward learn add_up" if shares else "forward learn"
    table = _table(f"stage block layers {middle} auxiliary sends memory idle", ("layers",))
    for row, block in zip(plan.rows(), plan.blocks, strict=True):
        first_of_stage = plan.stages[row["stage"]].blocks.start == row["block"]
        names = block.first if len(block.layers) == 1 else f"{block.first} .. {block.last}"
        is_last = row["block"] == len(plan.blocks) - 1
        sharing = [str(block.replicas)] if shares else []
        adding_up = [f"{1e3 * block.add_up_s:.1f} ms"] if shares else []
        table.add_row(
            str(row["stage"]) if first_of_stage else "",
            str(row["block"]),
            names,
            *sharing,
            f"{1e3 * block.forward_s:.1f} ms",
            f"{1e3 * block.learn_s:.1f} ms",
            *adding_up,
            f"{block.auxiliary_share:.0%}",
            "" if is_last else _size(block.features_bytes),
            _size(row["stage_memory_bytes"]) if first_of_stage else "",
            f"{row['stage_idle']:.0%}" if first_of_stage else "",
        )
    return table


def _rivals(rivals: Sequence[Rival]) -> Table:
    ours = rivals[0].samples_per_second
    table = _table("predicted devices micro-batches samples/s PPLL_is idle memory", ("predicted",))
    for rival in rivals:
        table.add_row(
            rival.system,
            str(rival.devices),
            str(rival.microbatches),
            f"{rival.samples_per_second:,.0f}",
            f"{ours / rival.samples_per_second:.2f}x",
            f"{rival.idle:.0%}",
            _size(rival.memory_bytes),
        )
    return table


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
