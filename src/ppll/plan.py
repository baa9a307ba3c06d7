"""From measured costs to blocks, stages and what they will take (no torch).

The plan is made of numbers alone, so it can be made anywhere for a machine that was measured. It
proposes cuts, which are the algorithm, and says what a placement of them will take, which is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ppll.balance import BlockCost, best_partition
from ppll.config import Recipe
from ppll.costs import Costs
from ppll.cuts import cut_starts
from ppll.errors import RecipeError
from ppll.placement import place
from ppll.simulate import Link, Pipeline, Simulation, StageTimes, simulate

__all__ = ["Plan", "PlannedBlock", "PlannedStage", "balanced_cuts", "draw_plan", "optimizer_states"]

_SIMULATED_MESSAGES: Final = 500


@dataclass(frozen=True)
class PlannedBlock:
    """What one block takes for a training message.

    Attributes:
        layers: Its layers, by index.
        first: Name of its first layer.
        last: Name of its last layer.
        forward_s: Seconds before its features are sent.
        learn_s: Seconds after that: auxiliary network, loss, backward pass and update.
        auxiliary_s: The part of it that is the auxiliary network's, or the network's own loss.
        parameter_bytes: Parameters, those of the auxiliary network included.
        activation_bytes: What it keeps between forward and backward.
        features_bytes: What it sends on.
    """

    layers: range
    first: str
    last: str
    forward_s: float
    learn_s: float
    auxiliary_s: float
    parameter_bytes: int
    activation_bytes: int
    features_bytes: int

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.forward_s + self.learn_s

    @property
    def auxiliary_share(self) -> float:
        """Share of its time that is not the network's."""
        return self.auxiliary_s / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class PlannedStage:
    """What one process runs.

    Attributes:
        blocks: Indices of its blocks.
        seconds: For a training message.
        memory_bytes: Parameters, gradients, optimizer state and averages of its blocks,
            activations of the largest of them, and the slots of its channel.
        idle: Share of the time in which it waits for another stage.
    """

    blocks: range
    seconds: float
    memory_bytes: int
    idle: float


@dataclass(frozen=True)
class Plan:
    """What a recipe will take on some stages.

    Attributes:
        recipe: With the cuts written out.
        costs: What it was made from.
        link: Between every two stages.
        blocks: Every block.
        stages: Every stage.
        seconds_per_message: In steady state.
        one_stage_s: What one stage with all blocks takes for a message.
    """

    recipe: Recipe
    costs: Costs
    link: Link
    blocks: tuple[PlannedBlock, ...]
    stages: tuple[PlannedStage, ...]
    seconds_per_message: float
    one_stage_s: float

    @property
    def samples_per_second(self) -> float:
        """In steady state."""
        return self.costs.message_size / self.seconds_per_message

    @property
    def speedup(self) -> float:
        """Over one stage that runs all blocks: sequential local learning."""
        return self.one_stage_s / self.seconds_per_message

    @property
    def bound(self) -> float:
        """Sum of the blocks to the slowest: what no placement of these cuts can beat."""
        return sum(b.seconds for b in self.blocks) / max(b.seconds for b in self.blocks)

    def rows(self) -> list[dict[str, Any]]:
        """A row a block, ready for JSON."""
        stage_of = {i: s for s, stage in enumerate(self.stages) for i in stage.blocks}
        return [
            {
                "block": index,
                "stage": stage_of[index],
                "layers": [block.first, block.last],
                "forward_s": block.forward_s,
                "learn_s": block.learn_s,
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
        num_stages: Stages; every one has a device of its own.
        link: Between every two stages.
        memory_limit_bytes: What a block may take; only balanced cuts ask for it.

    Raises:
        RecipeError: The costs are of another recipe, or there are more stages than blocks.
        ModelError: The network cannot be cut so.
    """
    costs.check_recipe(recipe)
    if recipe.split.cuts == "balanced":
        cuts = balanced_cuts(recipe, costs, link, memory_limit_bytes)
        recipe = recipe.model_copy(update={"split": recipe.split.model_copy(update={"cuts": cuts})})
    if num_stages > recipe.split.blocks:
        raise RecipeError(
            f"cannot place {recipe.split.blocks} blocks (split.blocks) on {num_stages} stages: "
            f"ask for 1 to {recipe.split.blocks}."
        )
    num_layers = len(costs.layers)
    starts = [0, *cut_starts(recipe.split, num_layers, costs.num_stem, costs.num_head), num_layers]
    blocks = [_block(recipe, costs, a, b) for a, b in itertools.pairwise(starts)]
    return _placed(recipe, costs, link, blocks, num_stages)


def balanced_cuts(
    recipe: Recipe, costs: Costs, link: Link, memory_limit_bytes: int | None = None
) -> tuple[int, ...]:
    """The cuts that make the slowest block fastest, every block on a device of its own.

    Raises:
        ModelError: There are more blocks than layers, or none fit the memory.
    """

    def cost(start: int, stop: int) -> BlockCost:
        block = _block(recipe, costs, start, stop)
        transfer_s = 0.0 if stop == len(costs.layers) else link.transfer_s(block.features_bytes)
        seconds = max(block.seconds, transfer_s)
        if not link.overlaps:
            seconds = block.seconds + transfer_s
        ring = costs.layers[start - 1].features_bytes if start else 0
        memory = _memory_bytes(recipe, [block], ring)
        return BlockCost(seconds, memory, block.features_bytes)

    return best_partition(
        len(costs.layers),
        recipe.split.blocks,
        cost,
        memory_limit_bytes=memory_limit_bytes,
        first_cut_from=max(1, costs.num_stem),
        last_cut_to=len(costs.layers) - max(1, costs.num_head),
    ).cuts


def _block(recipe: Recipe, costs: Costs, start: int, stop: int) -> PlannedBlock:
    layers, behind = costs.layers[start:stop], costs.exits[stop - 1]
    updates_s = sum(layer.update_s for layer in layers) + behind.update_s
    backward_s = layers[0].backward_first_s + sum(layer.backward_s for layer in layers[1:])
    auxiliary_s = behind.forward_s + behind.backward_s
    return PlannedBlock(
        layers=range(start, stop),
        first=layers[0].name,
        last=layers[-1].name,
        forward_s=sum(layer.forward_s for layer in layers),
        learn_s=auxiliary_s + backward_s + updates_s / recipe.train.accumulate + costs.block_s,
        auxiliary_s=auxiliary_s + behind.update_s / recipe.train.accumulate,
        parameter_bytes=sum(x.parameter_bytes for x in layers) + behind.parameter_bytes,
        activation_bytes=sum(x.activation_bytes for x in layers) + behind.activation_bytes,
        features_bytes=layers[-1].features_bytes,
    )


def _placed(
    recipe: Recipe, costs: Costs, link: Link, blocks: Sequence[PlannedBlock], num_stages: int
) -> Plan:
    placed = place(len(blocks), num_stages)
    found = _simulate(recipe, costs, link, [[blocks[i] for i in run] for run in placed])
    alone = _simulate(recipe, costs, link, [list(blocks)])
    stages = []
    for index, run in enumerate(placed):
        ring = blocks[run.start - 1].features_bytes if run.start else 0
        own = [blocks[i] for i in run]
        memory = _memory_bytes(recipe, own, ring)
        seconds = sum(block.seconds for block in own)
        stages.append(PlannedStage(run, seconds, memory, 1 - found.busy_fraction[index]))
    return Plan(
        recipe,
        costs,
        link,
        tuple(blocks),
        tuple(stages),
        found.seconds_per_batch,
        alone.seconds_per_batch,
    )


def _simulate(
    recipe: Recipe, costs: Costs, link: Link, stages: Sequence[Sequence[PlannedBlock]]
) -> Simulation:
    times = [
        StageTimes(
            before_send_s=sum(b.seconds for b in stage) - stage[-1].learn_s,
            after_send_s=stage[-1].learn_s,
            features_bytes=stage[-1].features_bytes,
        )
        for stage in stages
    ]
    links = (link,) * (len(stages) - 1)
    pipeline = Pipeline(tuple(times), links, recipe.runtime.capacity, costs.load_s)
    return simulate(pipeline, _SIMULATED_MESSAGES)


def optimizer_states(recipe: Recipe) -> int:
    """Tensors that the optimizer keeps for every parameter."""
    if recipe.optimizer.name == "adamw":
        return 2
    return int(recipe.optimizer.momentum > 0)


def _memory_bytes(recipe: Recipe, blocks: Sequence[PlannedBlock], ring_bytes: int) -> int:
    """Parameters, gradients, optimizer state and averages, the largest block's activations, the
    slots."""
    copies = 2 + optimizer_states(recipe) + int(recipe.train.ema > 0)
    parameters = copies * sum(block.parameter_bytes for block in blocks)
    activations = max(block.activation_bytes for block in blocks)
    return parameters + activations + recipe.runtime.capacity * ring_bytes
