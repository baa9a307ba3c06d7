"""A plan beside its rivals, as predicted from the same costs (no torch)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from ppll.errors import PpllError
from ppll.planning.balance import BlockCost, best_partition
from ppll.planning.costs import Costs
from ppll.planning.plan import Plan
from ppll.planning.planned import memory_bytes
from ppll.simulation.actions import chunks_of_ranks
from ppll.simulation.pipeline_work import PipelineWork
from ppll.simulation.schedules import CHUNKS_A_RANK, Prediction, predict

__all__ = ["Rival", "end_to_end_cuts", "pipeline_work", "predict_rivals"]

_MOST_MICROBATCHES: Final = 64
"""That are tried; more where there are more ranks."""


@dataclass(frozen=True)
class Rival:
    """One way to train the same network, as predicted.

    Attributes:
        system: Its name.
        microbatches: Pieces of a batch; the best number of those that were tried.
        samples_per_second: In steady state.
        idle: Share of all devices' time without computation.
        memory_bytes: Of the fullest device: parameters, gradients, optimizer state, activations.
        devices: How many it uses.
    """

    system: str
    microbatches: int
    samples_per_second: float
    idle: float
    memory_bytes: int
    devices: int

    def row(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def predict_rivals(plan: Plan, num_devices: int | None = None) -> list[Rival]:
    """PPLL, sequential local learning, and end-to-end training by every rival, side by side.

    Every pipeline gets cuts that are balanced for it and its best number of equal micro-batches.
    A piece of a batch, or DDP's share of it, takes what the costs say is the same for fewer
    samples, and what a block's turn takes whatever is in it; the rest shrinks with its size. No two
    rivals are combined.

    Args:
        plan: Of PPLL.
        num_devices: Of every rival that uses several, or as many of them as it can have; as many
            as the plan uses without.
    """
    devices = num_devices or plan.num_processes
    return [_ppll(plan), _sequential(plan), *_end_to_end(plan, devices)]


def _ppll(plan: Plan) -> Rival:
    idle = sum(stage.idle * stage.replicas for stage in plan.stages) / plan.num_processes
    memory = max(stage.memory_bytes for stage in plan.stages)
    parts = plan.recipe.train.accumulate
    return Rival("ppll", parts, plan.samples_per_second, idle, memory, plan.num_processes)


def _sequential(plan: Plan) -> Rival:
    rate = plan.costs.message_size / plan.one_stage_s
    runtime = plan.recipe.runtime.model_copy(update={"concurrent_blocks": False})
    memory = memory_bytes(plan.recipe.model_copy(update={"runtime": runtime}), plan.unshared)
    idle = 1 - sum(block.seconds for block in plan.unshared) / plan.one_stage_s
    return Rival("sequential", plan.recipe.train.accumulate, rate, max(idle, 0.0), memory, 1)


def _end_to_end(plan: Plan, num: int) -> Iterator[Rival]:
    num_layers, num_samples = len(plan.costs.layers), _batch_size(plan)
    yield from _best(plan, "backprop", 1, [1], 1)
    if (num_ranks := min(num, num_samples)) > 1:
        # Where gradients are ready to travel is known of so many parts.
        yield from _best(plan, "ddp", num_ranks, [1], min(num_ranks, num_layers))
    for schedule, chunks in CHUNKS_A_RANK.items():
        if (num_ranks := min(num, num_layers // chunks)) > 1:
            most = max(_MOST_MICROBATCHES, num_ranks)
            tries = [m for m in range(2, most + 1) if num_samples % m == 0]
            yield from _best(plan, schedule, num_ranks, tries, num_ranks * chunks)


def _batch_size(plan: Plan) -> int:
    return plan.costs.message_size * plan.recipe.train.accumulate


def _best(
    plan: Plan, system: str, num_ranks: int, tries: Sequence[int], num_chunks: int
) -> Iterator[Rival]:
    """The fastest of some numbers of micro-batches; nothing where none can be."""
    work = pipeline_work(plan, num_chunks)
    found = []
    for microbatches in tries:
        try:
            prediction = predict(system, work, num_ranks, microbatches, plan.link)
        except PpllError:
            continue
        seconds = max(prediction.seconds_per_batch, _loading_s(plan, system, num_ranks))
        found.append((seconds, microbatches, prediction))
    if found:
        seconds, microbatches, prediction = min(found, key=lambda each: each[0])
        memory = _memory(plan, system, num_ranks, num_chunks, microbatches, prediction)
        rate = _batch_size(plan) / seconds
        busy_s = (1 - prediction.idle_fraction) * prediction.seconds_per_batch
        yield Rival(system, microbatches, rate, 1 - busy_s / seconds, memory, num_ranks)


def _loading_s(plan: Plan, system: str, num_ranks: int) -> float:
    """What a loader takes for a batch, beside the work; with DDP each makes a share of it."""
    num_loaders = num_ranks if system == "ddp" else 1
    return plan.recipe.train.accumulate * plan.costs.load_s / num_loaders


def pipeline_work(plan: Plan, num_chunks: int) -> PipelineWork:
    """The network without auxiliary networks, in chunks balanced for an end-to-end pipeline."""
    costs = plan.costs.for_samples(_batch_size(plan))
    chunks = _chunks(plan.costs, num_chunks)
    layers, own = costs.layers, costs.exits[-1]
    forward = [sum(layers[i].forward_s for i in chunk) for chunk in chunks]
    backward = [sum(_backward_s(costs, i) for i in chunk) for chunk in chunks]
    forward_fixed = [
        sum(min(layers[i].forward_fixed_s, layers[i].forward_s) for i in chunk) for chunk in chunks
    ]
    backward_fixed = [
        sum(min(layers[i].backward_fixed_s, _backward_s(costs, i)) for i in chunk)
        for chunk in chunks
    ]
    forward[-1] += own.forward_s
    backward[-1] += own.backward_s
    forward_fixed[-1] += min(own.forward_fixed_s, own.forward_s)
    backward_fixed[-1] += min(own.backward_fixed_s, own.backward_s)
    return PipelineWork(
        tuple(forward),
        tuple(backward),
        tuple(sum(layers[i].update_s for i in chunk) for chunk in chunks),
        tuple(layers[chunk[-1]].features_bytes for chunk in chunks),
        tuple(sum(layers[i].parameter_bytes for i in chunk) for chunk in chunks),
        overhead_s=plan.costs.block_s / 2,  # a block's turn has a forward and a backward
        forward_fixed_s=tuple(forward_fixed),
        backward_fixed_s=tuple(backward_fixed),
    )


def end_to_end_cuts(costs: Costs, num_chunks: int) -> tuple[int, ...]:
    """First layer of every chunk but the first, balanced without auxiliary networks.

    The last chunk has the network's own loss.

    Raises:
        ModelError: There are more chunks than layers.
    """
    layers, own = costs.layers, costs.exits[-1]

    def cost(start: int, stop: int) -> BlockCost:
        run = range(start, stop)
        loss_s = own.forward_s + own.backward_s if stop == len(layers) else 0.0
        return BlockCost(loss_s + sum(layers[i].forward_s + _backward_s(costs, i) for i in run))

    return best_partition(len(layers), num_chunks, cost).cuts


def _chunks(costs: Costs, num_chunks: int) -> list[range]:
    bounds = [0, *end_to_end_cuts(costs, num_chunks), len(costs.layers)]
    return [range(a, b) for a, b in itertools.pairwise(bounds)]


def _backward_s(costs: Costs, layer: int) -> float:
    """The network's first layer hands no gradient on."""
    return costs.layers[layer].backward_first_s if layer == 0 else costs.layers[layer].backward_s


def _memory(
    plan: Plan,
    system: str,
    num_ranks: int,
    num_chunks: int,
    microbatches: int,
    prediction: Prediction,
) -> int:
    """Of the fullest rank; it holds so many micro-batches' activations at once."""
    copies = 2 + plan.recipe.optimizer.num_states
    samples = plan.recipe.train.accumulate  # of messages
    layers = plan.costs.layers
    dealt: Sequence[Sequence[int]] = (range(num_chunks),) * num_ranks
    if system in CHUNKS_A_RANK:
        dealt = chunks_of_ranks(system, num_ranks, num_chunks)
    chunks = _chunks(plan.costs, num_chunks)
    sizes = []
    for rank, indices in enumerate(dealt):
        own = [chunks[i] for i in indices]
        parameters = sum(layers[i].parameter_bytes for chunk in own for i in chunk)
        activations = samples * sum(layers[i].activation_bytes for chunk in own for i in chunk)
        share = 1 / num_ranks if system == "ddp" else 1 / microbatches
        held = prediction.peak_microbatches_held[rank] * share
        sizes.append(int(copies * parameters + held * activations))
    return max(sizes)
