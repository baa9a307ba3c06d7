"""From what a timeline says to what to change (no torch)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ppll.placement import meshes_of, place_alike
from ppll.sections import CheckpointConfig, RuntimeConfig
from ppll.tracing.summary import StageSummary, Summary

__all__ = ["advise", "working_cores"]

_LONG_WAIT: Final = 0.2
_SHORT_WAIT: Final = 0.05
_UNEVEN: Final = 1.15
_BUSY: Final = 0.85
_CROWDED: Final = 0.8
_INTERRUPTED: Final = 0.6
_MANY_SAVES: Final = 0.05
_SAME: Final = 1.05
_EVENS_OUT: Final = 4
"""Slots of a channel that leave little of waits in turn."""
_LARGEST_CAPACITY: Final = 64
_A_CUT: Final = (
    "a cut: ppll plan RECIPE --set split.cuts=balanced --write NEW.toml writes a recipe with "
    "blocks of equal time (another network of blocks, so another result; of a network given from "
    "Python, set split.cuts by hand)"
)
_OR_FOR_A_GPU: Final = " If its GPU is busy all the time, it waits for that: then nothing is amiss."


def working_cores(environment: Mapping[str, Any], runtime: RuntimeConfig) -> int | None:
    """Processors of the machine that a run ran on; none where GPUs did the work, or unknown."""
    named = {runtime.devices} if isinstance(runtime.devices, str) else {*runtime.devices}
    on_gpus = bool(environment.get("gpus")) and named != {"cpu"}
    found = environment.get("num_cores")
    return found if isinstance(found, int) and not on_gpus else None


def advise(
    summary: Summary,
    num_cores: int | None = None,
    checkpoint: CheckpointConfig | None = None,
    threads: int = 1,
) -> list[str]:
    """What would make the run faster, what helps most first; what is well needs no words.

    Args:
        summary: Of a run's newest start.
        num_cores: Processors of a host, where they are known and do the work; with GPUs a stage's
            processor waits for them.
        checkpoint: When the run is saved; without, as a recipe that does not say.
        threads: Of every process.
    """
    advice = [*_on_data(summary, num_cores), *_on_crowding(summary, num_cores, threads)]
    advice += _on_stages(summary, num_cores, threads) if not advice else []
    return [*advice, *_on_checkpoints(summary, checkpoint or CheckpointConfig())]


def _on_data(summary: Summary, num_cores: int | None) -> Iterator[str]:
    first = summary.stages[0]
    if first.stage > 0 or first.send_wait >= _SHORT_WAIT:
        return  # Stage 0 left nothing behind, or waits for another one.
    cheaper = (
        "make them cheaper (fewer operations of augmentation under data)."
        f"{'' if num_cores else _OR_FOR_A_GPU}"
    )
    if first.receive_wait > _LONG_WAIT:
        yield (
            f"Stage 0 waits for data {first.receive_wait:.0%} of the time, and so do all behind "
            f"it: make batches further ahead (runtime.capacity, now {first.capacity}), or {cheaper}"
        )
    elif first.make_batches > _LONG_WAIT:
        # A GPU makes them faster than a thread would: the processor has only to line them up.
        ahead = (
            'let a thread make them ahead (runtime.data = "host"; the result stays the same), or '
        )
        yield (
            f"Stage 0 makes its batches itself, {first.make_batches:.0%} of the time: "
            f"{ahead if num_cores else ''}{cheaper}"
        )


def _on_crowding(summary: Summary, num_cores: int | None, threads: int) -> Iterator[str]:
    shares = [stage.cpu for stage in summary.stages if stage.cpu is not None]
    num = threads * max(summary.hosts)
    if num_cores is not None and num > num_cores and shares and min(shares) < _CROWDED:
        yield (
            f"{_who(summary, threads)} share {num_cores} processors: one had a processor only "
            f"{min(shares):.0%} of the time that it wanted to work. "
            f"{_fewer(summary, num_cores, threads)}"
        )
    elif num_cores is not None and shares and min(shares) < _INTERRUPTED:
        yield (
            f"A stage had a processor only {min(shares):.0%} of the time that it wanted to work: "
            f"other programs run on this machine, so its times say little. Look again when it is "
            f"idle."
        )


def _who(summary: Summary, threads: int) -> str:
    num, num_stages = summary.num_processes, len(summary.stages)
    if num == 1:
        return f"{threads} threads of one stage"
    of_threads = f" of {threads} threads each" if threads > 1 else ""
    if len(summary.hosts) > 1:
        return f"{max(summary.hosts)} processes{of_threads} on one host"
    if num == num_stages:
        return f"{num} stages{of_threads}"
    return f"{num} processes{of_threads}, all replicas of {num_stages} stage(s),"


def _fewer(summary: Summary, num_cores: int, threads: int) -> str:
    if threads > num_cores:
        return (
            "Take fewer train.threads_per_stage, with which the result is another up to the order "
            "of sums."
        )
    if len(summary.hosts) > 1:
        return "Start fewer on a host (torchrun --nproc-per-node); the result stays the same."
    if summary.num_processes == len(summary.stages):
        return f"Take --stages {num_cores // threads} or fewer; the result stays the same."
    return (
        "Take fewer --stages, with which the result stays the same, or fewer train.replicas, with "
        "which it is another up to the order of sums."
    )


def _on_stages(summary: Summary, num_cores: int | None, threads: int) -> Iterator[str]:
    replicas = [stage.replicas for stage in summary.stages for _ in stage.blocks]
    most = None if num_cores is None else len(summary.hosts) * (num_cores // threads)
    able = _able_stages(summary, replicas, most)
    share = max(stage.average_wait for stage in summary.stages)
    if len(summary.stages) == 1:
        yield from _on_one_stage(max(able))
        yield from _on_replicas(share)
        return
    if num_cores is not None and (link := _slow_link(summary)):
        yield _on_link(*link)
        return
    mean_s = sum(stage.work_s for stage in summary.stages) / len(summary.stages)
    if mean_s and summary.bottleneck.work_s > _UNEVEN * mean_s:
        yield _on_uneven(summary, mean_s, _best_stages(summary, replicas, able), able[0])
    elif share > _LONG_WAIT:
        yield from _on_replicas(share)
    elif max(stage.busy for stage in summary.stages) < _BUSY:
        yield from _on_capacity(summary)


def _able_stages(summary: Summary, replicas: Sequence[int], most: int | None) -> list[int]:
    """Numbers of stages that the blocks may have, with no more processes than have processors of
    their own, or than there are."""
    meshes = meshes_of(replicas)
    most = max(meshes[-1].size if most is None else most, summary.num_processes)
    return [mesh.num_stages for mesh in meshes if mesh.size <= most]


def _on_one_stage(most: int) -> Iterator[str]:
    if most > 1:
        yield (
            f"One stage does all the work: with --stages {'2' if most == 2 else f'2 to {most}'} "
            f"blocks work side by side; the result stays the same."
        )


def _slow_link(summary: Summary) -> tuple[StageSummary, StageSummary] | None:
    """Two neighbours that both wait for what lies between them.

    Of hosts that wait for GPUs it says nothing. Nor do small channels, where neighbours wait as
    long for each other; larger ones even out also what varies most: less than a fifth of the time
    is left of work that is distributed exponentially.
    """
    for before, after in itertools.pairwise(summary.stages):
        wait = min(before.send_wait, after.receive_wait)
        if wait > _LONG_WAIT and after.capacity >= _EVENS_OUT:
            return before, after
    return None


def _on_link(before: StageSummary, after: StageSummary) -> str:
    return (
        f"Stage {before.stage} waits to send {before.send_wait:.0%} of the time, and stage "
        f"{after.stage} to receive {after.receive_wait:.0%} of it: the link between "
        f"them is too slow for what they exchange. Let them share a host, or send fewer bytes "
        f"(split.features_dtype, which changes the result). A larger runtime.capacity does not "
        f"help."
    )


def _on_uneven(summary: Summary, mean_s: float, best: int, least: int) -> str:
    slow = summary.bottleneck
    found = (
        f"Stage {slow.stage} takes {1e3 * slow.work_s:.1f} ms a message, all stages "
        f"{1e3 * mean_s:.1f} ms on average, so the others wait for it."
    )
    if len(slow.blocks) == 1 or best == len(summary.stages):
        fewer = ", or take fewer stages" if least < len(summary.stages) else ""
        return f"{found} Move {_A_CUT}{fewer}."
    found += f" It has {len(slow.blocks)} blocks: --stages {best}"
    if best > len(summary.stages):
        return f"{found} is faster; the result stays the same."
    return (
        f"{found} takes no longer with fewer processes; the result stays the same. To be faster, "
        f"move {_A_CUT}."
    )


def _best_stages(summary: Summary, replicas: Sequence[int], able: Sequence[int]) -> int:
    """The fewest stages with which no other number is clearly faster, as blocks are dealt."""
    blocks_s = [b.forward_s + b.learn_s for stage in summary.stages for b in stage.blocks]

    def slowest_s(num_stages: int) -> float:
        return max(sum(blocks_s[i] for i in run) for run in place_alike(replicas, num_stages))

    fastest_s = min(map(slowest_s, able))
    return next(num for num in able if slowest_s(num) <= _SAME * fastest_s)


def _on_replicas(share: float) -> Iterator[str]:
    if share > _LONG_WAIT:
        yield (
            f"Replicas wait {share:.0%} of the time for each other's gradients: take fewer of them "
            f"(train.replicas) or larger batches (data.batch_size), which change the result."
        )


def _on_capacity(summary: Summary) -> Iterator[str]:
    capacity = summary.stages[0].capacity
    if capacity < _LARGEST_CAPACITY:
        larger = min(2 * capacity, _LARGEST_CAPACITY)
        yield (
            f"The stages have equal work but wait for each other in turn: let channels even it out "
            f"with runtime.capacity = {larger} (now {capacity}); the result stays the same."
        )


def _on_checkpoints(summary: Summary, config: CheckpointConfig) -> Iterator[str]:
    """Only of those that the recipe asks for: the first and the last are always taken."""
    share = max(stage.checkpoint for stage in summary.stages)
    if share <= _MANY_SAVES:
        return
    found = f"Checkpoints take {share:.0%} of a stage's time"
    if config.every_steps is not None:
        yield f"{found}: save less often (checkpoint.every_steps, now {config.every_steps})."
    elif config.keeps_best:
        yield (
            f'{found}: with checkpoint.keep = "best" there is one at every evaluation, so evaluate '
            f"less often (train.evaluate_every; a recipe that evaluates less may keep another one)."
        )
