"""What a number of processes can do for a recipe, and which way pays (no torch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ppll.config import Recipe
from ppll.errors import ModelError
from ppll.planning.costs import Costs
from ppll.planning.plan import Plan, block_starts, draw_plan
from ppll.planning.planned import BlockTable
from ppll.planning.recommendation import CLEARLY
from ppll.planning.sharing import best_shares
from ppll.simulation.links import Link

__all__ = ["Choice", "choose", "list_choices", "verdict", "with_more_blocks"]

_STAGES: Final = "a stage each"
_FEWER_STAGES: Final = "fewer stages"
_COPIES: Final = "copies of the pipeline"
_REPLICAS: Final = "replicas of single blocks"
_MORE_BLOCKS: Final = "more blocks"


@dataclass(frozen=True)
class Choice:
    """One way to use processes.

    Attributes:
        way: What they are used for.
        plan: What it takes.
    """

    way: str
    plan: Plan

    @property
    def keeps_blocks(self) -> bool:
        """Whether the network is cut as the recipe says."""
        return self.way != _MORE_BLOCKS

    @property
    def placement(self) -> tuple[int, ...]:
        """Processes of every stage."""
        return tuple(stage.replicas for stage in self.plan.stages)

    @property
    def recipe(self) -> Recipe:
        """The recipe that does so, cuts and stages written out."""
        runtime = self.plan.recipe.runtime.model_copy(update={"stages": len(self.plan.stages)})
        return self.plan.recipe.model_copy(update={"runtime": runtime})

    def row(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "way": self.way,
            "replicas": list(self.plan.recipe.block_replicas),
            "stages": len(self.plan.stages),
            "processes": self.plan.num_processes,
            "samples_per_second": self.plan.samples_per_second,
            "speedup": self.plan.speedup,
            "memory_bytes": max(stage.memory_bytes for stage in self.plan.stages),
        }


def list_choices(
    recipe: Recipe,
    costs: Costs,
    num_processes: int,
    link: Link,
    *,
    memory_limit_bytes: int | None = None,
) -> list[Choice]:
    """All ways to use so many processes, the simplest first.

    Args:
        recipe: Its replicas and stages are chosen anew; without replicas nothing is sharded.
        costs: Measured for it.
        num_processes: No way uses more.
        link: Between every two processes.
        memory_limit_bytes: What a block may take; only balanced cuts ask for it.

    Raises:
        RecipeError: The costs are of another recipe, or it cannot have replicas.
        DataError: Even without replicas a training message would be too small to learn from.
        ModelError: The network cannot be cut so.
    """
    num_stages = min(num_processes, recipe.split.blocks)
    alone = _with_replicas(recipe, [1] * recipe.split.blocks)
    first = draw_plan(alone, costs, num_stages, link, memory_limit_bytes=memory_limit_bytes)
    cut = recipe.model_copy(update={"split": first.recipe.split})
    table, starts = BlockTable(cut, costs, link), block_starts(cut, costs)
    found = [Choice(_STAGES, first)]
    for way, most_groups in ((_COPIES, 1), (_REPLICAS, None)):
        best = best_shares(table, starts, num_processes, most_groups=most_groups)
        plan = draw_plan(_with_replicas(cut, best.replicas), costs, best.num_stages, link)
        choice = Choice(way if plan.recipe.most_replicas > 1 else _FEWER_STAGES, plan)
        if all(choice.placement != other.placement for other in found):
            found.append(choice)
    return [*found, *_more_blocks(alone, costs, num_processes, link, memory_limit_bytes)]


def _with_replicas(recipe: Recipe, replicas: Sequence[int]) -> Recipe:
    """The recipe with so many replicas of every block: one number where all are alike."""
    alike = len(set(replicas)) == 1
    value = replicas[0] if alike else list(replicas)
    sharding = recipe.runtime.sharding if max(replicas) > 1 else "none"
    return recipe.with_settings([f"train.replicas={value}", f"runtime.sharding={sharding}"])


def _more_blocks(
    recipe: Recipe, costs: Costs, num_processes: int, link: Link, memory_limit_bytes: int | None
) -> Iterator[Choice]:
    """As many blocks as there are processes, balanced; none where the network is too short, or no
    cuts keep the memory limit."""
    if num_processes <= recipe.split.blocks:
        return
    cut = with_more_blocks(recipe, num_processes)
    try:
        plan = draw_plan(cut, costs, num_processes, link, memory_limit_bytes=memory_limit_bytes)
    except ModelError:
        return
    yield Choice(_MORE_BLOCKS, plan)


def with_more_blocks(recipe: Recipe, num_blocks: int) -> Recipe:
    """The recipe with so many blocks, balanced, without replicas."""
    split = [f"split.blocks={num_blocks}", "split.cuts=balanced"]
    return recipe.with_settings([*split, "train.replicas=1", "runtime.sharding=none"])


def choose(choices: Sequence[Choice]) -> Choice:
    """The simplest way that keeps the blocks and that no other such is clearly faster than."""
    able = [choice for choice in choices if choice.keeps_blocks]
    best = max(choice.plan.samples_per_second for choice in able)
    return next(c for c in able if c.plan.samples_per_second * CLEARLY > best)


def verdict(choices: Sequence[Choice]) -> str:
    """Whether replicas of single blocks pay, and by how much, in plain words."""
    chosen = choose(choices)
    ours = chosen.plan.samples_per_second
    others = [choice for choice in choices if choice is not chosen]
    pays = chosen.way == _REPLICAS
    text = (
        "Replicas of single blocks pay: "
        if pays
        else f"Replicas of single blocks do not pay here; take {chosen.way!r}: "
    ) + ", ".join([f"{ours:,.0f} samples/s", *(_beside(ours, choice) for choice in others)])
    return ". ".join([text, *_notes(chosen, others)]) + "."


def _notes(chosen: Choice, others: Sequence[Choice]) -> Iterator[str]:
    """What to mind about what is taken."""
    plan = chosen.plan
    fastest = max((choice.plan.samples_per_second for choice in others), default=0.0)
    if fastest > CLEARLY * plan.samples_per_second:
        yield (
            "More blocks would be faster, but cuts are the algorithm: compare its accuracy "
            "(ppll study)"
        )
    if plan.recipe.most_replicas == 1:
        return
    yield (
        "Replicas change what is learned only by the order of sums, by dropout, and by batch "
        "norm and losses between samples, which see a shard"
    )
    if not plan.costs.knows_samples_of(plan.recipe):
        yield (
            "The costs do not say how many samples an epoch of this recipe has, so its last batch "
            "may have too few for so many: ppll train --dry-run tells"
        )


def _beside(ours: float, choice: Choice) -> str:
    return f"{ours / choice.plan.samples_per_second:.2f} times {choice.way!r}"
