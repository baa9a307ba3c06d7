"""What to take of a plan and its rivals, in plain words (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ppll.planning.plan import Plan
from ppll.planning.rivals import Rival
from ppll.simulation.schedules import CHUNKS_A_RANK
from ppll.simulation.simulate import Link

__all__ = ["CLEARLY", "recommend"]

CLEARLY: Final = 1.05
"""Predictions are not so exact that less than this would decide."""
_NOISY: Final = 0.25
"""Costs whose repeats differ by more, relative to their median, decide nothing."""


def recommend(plan: Plan, rivals: Sequence[Rival]) -> str:
    """What to take, in plain words, also where that is a rival."""
    text = _recommended(plan, rivals)
    if (spread := plan.costs.spread) > _NOISY:
        text = (
            f"These costs are too noisy to go by: a layer's repeats differ by {spread:.0%}. "
            f"Measure them again when the machine does nothing else. As they are: {text}"
        )
    if plan.recipe.runtime.sharding != "none":
        text += (
            " Memory is that of runtime.sharding; time is not: layers are gathered twice a message "
            "and added up in the backward pass, which takes longer than predicted here."
        )
    if plan.recipe.runtime.concurrent_blocks and len(plan.stages) < len(plan.blocks):
        text += (
            " Memory is that of runtime.concurrent_blocks; time is that of a stage's blocks one "
            "after the other, which is longer."
        )
    return text


def _recommended(plan: Plan, rivals: Sequence[Rival]) -> str:
    ours, *others = rivals
    if plan.num_processes == 1:
        if all(rival.devices == 1 for rival in others):
            return "One stage is sequential local learning: see what more --stages give."
        others = [rival for rival in others if rival.system != "sequential"]
    best = max(others, key=lambda rival: rival.samples_per_second)
    ahead = ours.samples_per_second / best.samples_per_second
    if ahead >= CLEARLY:
        return (
            f"Use PPLL: {ahead:.2f} times the predicted speed of the best rival, {_name(best)}. "
            f"Mind that local learning is another algorithm: compare its accuracy (ppll study)."
        )
    if best.system == "sequential":
        return _beside_one_process(plan, ahead)
    memory = f"{best.memory_bytes / 2**20:,.0f} MiB a device, {ours.memory_bytes / 2**20:,.0f} here"
    if ahead > 1 / CLEARLY:
        return (
            f"PPLL and {_name(best)} are predicted equally fast (ratio {ahead:.2f}; {memory}). "
            f"{_among_equals(plan, best)}"
        )
    links = f" and the links are as fast as said ({_speed(plan.link)})" if best.devices > 1 else ""
    return (
        f"Use {_name(best)}: {1 / ahead:.2f} times the predicted speed of PPLL, if it fits "
        f"({memory}){links}."
    )


def _among_equals(plan: Plan, best: Rival) -> str:
    if best.devices == 1:
        return f"Take {_name(best)}, which needs no links, where it fits."
    text = f"Take {_name(best)} where end-to-end training matters"
    # Replicas of PPLL exchange gradients as a rival's do.
    return f"{text}." if plan.recipe.most_replicas > 1 else f"{text}, PPLL where links are slow."


def _beside_one_process(plan: Plan, ahead: float) -> str:
    """One process needs no links, and nothing else makes several clearly slower."""
    alone = "one stage (--stages 1)"
    if plan.recipe.most_replicas > 1:
        alone = "one process (--stages 1 --set train.replicas=1)"
    if ahead <= 1 / CLEARLY:
        return (
            f"Take {alone}: {1 / ahead:.2f} times the predicted speed of several, "
            f"whose links ({_speed(plan.link)}) take more than they give."
        )
    return (
        f"{alone[0].upper()}{alone[1:]} and several are predicted about equally fast (ratio "
        f"{ahead:.2f}): {_why_equal(plan)}"
    )


def _why_equal(plan: Plan) -> str:
    blocks = [[plan.blocks[i] for i in stage.blocks] for stage in plan.stages]
    works_s = [sum(block.forward_s + block.learn_s for block in own) for own in blocks]
    slowest_s = max(works_s)
    load_s = plan.costs.load_s / plan.stages[0].replicas
    if CLEARLY * load_s > plan.seconds_per_message:
        return (
            f"the loader takes {1e3 * load_s:,.1f} ms a message, and all wait for it. Make batches "
            f"cheaper (fewer operations of augmentation under data)."
        )
    if plan.seconds_per_message > CLEARLY * slowest_s:
        return f"the links ({_speed(plan.link)}) take about as much as several stages give."
    slowest = works_s.index(slowest_s)
    share = f"{slowest_s / plan.one_stage_s:.0%}"
    if plan.stages[slowest].replicas > 1:
        return (
            f"a replica of stage {slowest} takes {share} of the time that one process takes for "
            f"all, since not all of it shrinks with its share of a batch. Take one process."
        )
    return (
        f"stage {slowest} has {share} of the work. "
        f"See what blocks of equal time give (--set split.cuts=balanced), or take one stage."
    )


def _name(rival: Rival) -> str:
    if rival.system in CHUNKS_A_RANK:
        return f"{rival.system} with {rival.microbatches} micro-batches"
    return {"ddp": "DDP", "backprop": "backprop on one device"}.get(rival.system, rival.system)


def _speed(link: Link) -> str:
    return f"{link.bandwidth_bytes_s / 1e9:g} GB/s, {link.latency_s * 1e6:g} us"
