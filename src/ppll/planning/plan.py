"""From measured costs to blocks, stages and what they will take (no torch).

The plan is made of numbers alone, so it can be made anywhere for a machine that was measured. It
proposes cuts, which are the algorithm, and says what a placement of them will take, which is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ppll.config import Recipe
from ppll.cuts import cut_starts
from ppll.errors import RecipeError
from ppll.placement import place, place_alike
from ppll.planning.balance import BlockCost, best_partition
from ppll.planning.costs import Costs
from ppll.planning.planned import BlockTable, PlannedBlock, memory_bytes, stage_times
from ppll.simulation.clusters import crossed
from ppll.simulation.simulate import Link, Pipeline, Simulation, simulate

__all__ = ["Plan", "PlannedStage", "balanced_cuts", "block_starts", "draw_plan"]

_SIMULATED_MESSAGES: Final = 500


@dataclass(frozen=True)
class PlannedStage:
    """What one process runs; each of its replicas the same.

    Attributes:
        blocks: Indices of its blocks.
        replicas: Processes that share its messages.
        seconds: For a training message, or a replica's shard of it.
        memory_bytes: Of one process; see ``ppll.planning.planned.memory_bytes``.
        idle: Share of the time in which it waits for another stage.
    """

    blocks: range
    replicas: int
    seconds: float
    memory_bytes: int
    idle: float


@dataclass(frozen=True)
class Plan:
    """What a recipe will take on some stages.

    Attributes:
        recipe: With the cuts written out.
        costs: What it was made from, for messages that nobody shares.
        link: Between every two processes.
        blocks: Every block, as one of its replicas carries it out.
        unshared: Every block, as one process would carry it out.
        stages: Every stage.
        seconds_per_message: In steady state; a message is that of all replicas together.
        one_stage_s: What one process with all blocks takes for a message.
    """

    recipe: Recipe
    costs: Costs
    link: Link
    blocks: tuple[PlannedBlock, ...]
    unshared: tuple[PlannedBlock, ...]
    stages: tuple[PlannedStage, ...]
    seconds_per_message: float
    one_stage_s: float

    @property
    def num_processes(self) -> int:
        """Of all stages and replicas."""
        return sum(stage.replicas for stage in self.stages)

    @property
    def samples_per_second(self) -> float:
        """In steady state."""
        return self.costs.message_size / self.seconds_per_message

    @property
    def speedup(self) -> float:
        """Over one process that runs all blocks: sequential local learning."""
        return self.one_stage_s / self.seconds_per_message

    @property
    def bound(self) -> float:
        """Sum of the blocks to the slowest: what no placement of these cuts and replicas can
        beat."""
        return sum(b.seconds for b in self.unshared) / max(b.seconds for b in self.blocks)

    def rows(self) -> list[dict[str, Any]]:
        """A row a block, ready for JSON."""
        stage_of = {i: s for s, stage in enumerate(self.stages) for i in stage.blocks}
        return [
            {
                "block": index,
                "stage": stage_of[index],
                "replicas": block.replicas,
                "samples": block.samples,
                "layers": [block.first, block.last],
                "forward_s": block.forward_s,
                "learn_s": block.learn_s,
                "add_up_s": block.add_up_s,
                "auxiliary_share": block.auxiliary_share,
                "features_bytes": block.features_bytes,
                "stage_memory_bytes": self.stages[stage_of[index]].memory_bytes,
                "stage_idle": self.stages[stage_of[index]].idle,
            }
            for index, block in enumerate(self.blocks)
        ]


def draw_plan(
    recipe: Recipe,
    costs: Costs,
    num_stages: int,
    link: Link,
    *,
    memory_limit_bytes: int | None = None,
) -> Plan:
    """Place a recipe's blocks on stages and say what that takes.

    Args:
        recipe: ``split.cuts = "balanced"`` is resolved with the costs.
        costs: Measured for this recipe.
        num_stages: Stages; every process, so each of their replicas, has a device of its own.
        link: Between every two processes.
        memory_limit_bytes: What a block may take; only balanced cuts ask for it.

    Raises:
        RecipeError: The costs are of another recipe, or no stages can be so.
        DataError: A training message would be too small to learn from.
        ModelError: The network cannot be cut so.
    """
    costs.check_recipe(recipe)
    costs.check_messages(recipe)
    if recipe.split.cuts == "balanced":
        cuts = balanced_cuts(recipe, costs, link, memory_limit_bytes)
        recipe = recipe.model_copy(update={"split": recipe.split.model_copy(update={"cuts": cuts})})
    if num_stages > recipe.split.blocks:
        raise RecipeError(
            f"cannot place {recipe.split.blocks} blocks (split.blocks) on {num_stages} stages: "
            f"ask for 1 to {recipe.split.blocks}."
        )
    return _placed(BlockTable(recipe, costs, link), num_stages)


def block_starts(recipe: Recipe, costs: Costs) -> list[int]:
    """First layer of every block, and the end of the last."""
    num_layers = len(costs.layers)
    cuts = cut_starts(recipe.split, num_layers, costs.num_stem, costs.num_head)
    return [0, *cuts, num_layers]


def _placed(table: BlockTable, num_stages: int) -> Plan:
    recipe, link = table.recipe, table.link
    ranges = list(itertools.pairwise(block_starts(recipe, table.costs)))
    unshared = [table.block(*layers) for layers in ranges]
    blocks = [table.block(*at, r) for at, r in zip(ranges, recipe.block_replicas, strict=True)]
    placed = _place(recipe, num_stages)
    rows = [[blocks[i] for i in run] for run in placed]
    found = _simulate(recipe, link, rows, table.sized(blocks[0].replicas).load_s)
    alone = _simulate(recipe, link, [unshared], table.sized(1).load_s)
    before, stages = 1, []
    for run, own, busy in zip(placed, rows, found.busy_fraction, strict=True):
        seconds, memory = sum(block.seconds for block in own), memory_bytes(recipe, own, before)
        before = own[0].replicas
        stages.append(PlannedStage(run, before, seconds, memory, 1 - busy))
    return Plan(
        recipe,
        table.sized(1),
        link,
        tuple(blocks),
        tuple(unshared),
        tuple(stages),
        found.seconds_per_batch,
        alone.seconds_per_batch,
    )


def _place(recipe: Recipe, num_stages: int) -> tuple[range, ...]:
    replicas, num_blocks = recipe.train.replicas, recipe.split.blocks
    if isinstance(replicas, int):
        return place(num_blocks, num_stages)
    return place_alike(replicas, num_stages)


def balanced_cuts(
    recipe: Recipe, costs: Costs, link: Link, memory_limit_bytes: int | None = None
) -> tuple[int, ...]:
    """The cuts that make the slowest block or link fastest, every block on a device of its own.

    Replicas of single blocks do not count: blocks are balanced as one process each carries them
    out. Where all have equally many they do.

    Raises:
        ModelError: There are more blocks than layers, or none fit the memory.
    """

    table = BlockTable(recipe, costs, link)
    replicas = recipe.train.replicas if isinstance(recipe.train.replicas, int) else 1

    def cost(start: int, stop: int) -> BlockCost:
        block = table.block(start, stop, replicas)
        link_after = Link() if stop == len(costs.layers) else link
        # A block that sends takes no other message before that has ended.
        seconds = max(
            link_after.occupied_s(stage_times([block])),
            link_after.transfer_s(block.features_bytes),
        )
        return BlockCost(seconds, memory_bytes(recipe, [block], replicas), block.features_bytes)

    return best_partition(
        len(costs.layers),
        recipe.split.blocks,
        cost,
        memory_limit_bytes=memory_limit_bytes,
        first_cut_from=max(1, costs.num_stem),
        last_cut_to=len(costs.layers) - max(1, costs.num_head),
    ).cuts


def _simulate(
    recipe: Recipe, link: Link, stages: Sequence[Sequence[PlannedBlock]], load_s: float
) -> Simulation:
    links = (link,) * (len(stages) - 1)
    replicas = [stage[0].replicas for stage in stages]
    times = crossed([stage_times(stage) for stage in stages], replicas, links)
    pipeline = Pipeline(times, links, recipe.runtime.capacity, load_s)
    return simulate(pipeline, _SIMULATED_MESSAGES)
