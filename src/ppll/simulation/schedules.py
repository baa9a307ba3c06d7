"""What the rivals take for one optimizer step: end-to-end training of the same network (no torch).

A pipeline schedule is, for every rank, a list of actions that it does in order
(``ppll.simulation.actions``). An action starts when its rank is free and its input has arrived;
sends go on beside the work.

Beside the pipelines stand ``backprop`` and ``sequential`` (local learning) on one device, and
``ddp``. Steps follow each other without a barrier: a rank begins the next one after its own update.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ppll.errors import RecipeError, unknown_name
from ppll.simulation.actions import CHUNKS_A_RANK, Action, Lists, pipeline_actions
from ppll.simulation.pipeline_work import PipelineWork
from ppll.simulation.simulate import Link

__all__ = ["CHUNKS_A_RANK", "SCHEDULES", "Prediction", "predict"]

SCHEDULES: Final = ("backprop", "sequential", "ddp", *CHUNKS_A_RANK)
"""Names that ``predict`` knows."""

_BUCKET_BYTES: Final = 25 * 2**20
"""DDP's ``bucket_cap_mb``: it reduces gradients in pieces of this size."""
_MAX_STEPS: Final = 100
_SAME: Final = 1e-9  # relative


@dataclass(frozen=True)
class Prediction:
    """What one of many optimizer steps takes.

    Attributes:
        seconds_per_batch: From step to step.
        idle_fraction: Share of all ranks' time without computation.
        peak_microbatches_held: Of every rank, most micro-batches (for ``ddp``, shares of the batch)
            whose activations it holds at once; one of v chunks counts as 1/v.
    """

    seconds_per_batch: float
    idle_fraction: float
    peak_microbatches_held: tuple[float, ...]


def predict(
    schedule: str,
    work: PipelineWork,
    num_ranks: int = 1,
    num_microbatches: int = 1,
    link: Link | None = None,
) -> Prediction:
    """What a schedule takes for one batch.

    Args:
        schedule: One of ``SCHEDULES``. Where it has one chunk a rank, neighbours are merged.
        work: Of the batch; with auxiliary networks for ``sequential``, without for the others.
        num_ranks: Devices; 1 for ``backprop`` and ``sequential``.
        num_microbatches: Pieces of the batch; 1 for all but the pipelines.
        link: Between every two neighbours; one that takes no time without. With ``overlaps`` off,
            ``ddp`` reduces after the backward pass and pipelines compute nothing while they send.

    Raises:
        RecipeError: There is no such schedule, or it cannot run so.
    """
    if schedule not in SCHEDULES:
        raise RecipeError(unknown_name("schedule", schedule, SCHEDULES))
    link = link or Link()
    if schedule in CHUNKS_A_RANK:
        return _predict_pipeline(schedule, work, num_ranks, num_microbatches, link)
    if num_microbatches != 1 or num_ranks < 1 or (schedule != "ddp" and num_ranks > 1):
        allowed = "1 rank or more" if schedule == "ddp" else "1 rank"
        raise RecipeError(
            f"{schedule} cannot run on {num_ranks} rank(s) with {num_microbatches} micro-batches: "
            f"give {allowed} and 1 micro-batch."
        )
    return _predict_data_parallel(work, num_ranks, link)


def _predict_pipeline(
    schedule: str, work: PipelineWork, num_ranks: int, num_microbatches: int, link: Link
) -> Prediction:
    has_one = CHUNKS_A_RANK[schedule] == 1
    if has_one and num_ranks > 0 and work.num_chunks % num_ranks == 0:
        work = work.merged(num_ranks)
    actions = pipeline_actions(schedule, num_ranks, work.num_chunks, num_microbatches)
    player = _Player(actions, work, num_microbatches, link)
    seconds = player.period_s()
    idle = 1 - player.busy_s / (num_ranks * seconds) if seconds else 0.0
    ends = [itertools.accumulate((a.kind == "F") - (a.kind in "BW") for a in r) for r in actions]
    held = tuple(max(row) * num_ranks / work.num_chunks for row in ends)
    return Prediction(seconds, max(idle, 0.0), held)


class _Player:
    """Ranks that do their actions in order, each as soon as its input has arrived."""

    def __init__(
        self, actions: Lists, work: PipelineWork, num_microbatches: int, link: Link
    ) -> None:
        self._actions, self._link, self._last = actions, link, work.num_chunks - 1
        self._back = actions[0][-1].kind.replace("W", "I")
        self._beginning = {Action("F", 0, i): 0.0 for i in range(num_microbatches)}
        shares = {"F": 1.0, "B": 1.0, "I": 1 - work.weight_share, "W": work.weight_share}
        forward_s, backward_s = work.piece_s(num_microbatches)
        self._seconds = {
            (kind, chunk): share * seconds + work.overhead_s
            for kind, share in shares.items()
            for chunk, seconds in enumerate(forward_s if kind == "F" else backward_s)
        }
        self._transfer_s = [link.transfer_s(b / num_microbatches) for b in work.features_bytes]
        self._rank_of = {a.chunk: rank for rank, row in enumerate(actions) for a in row}
        self._update_s = [0.0] * len(actions)
        for chunk, seconds in enumerate(work.update_s):
            self._update_s[self._rank_of[chunk]] += seconds
        done = [self._seconds[action[:2]] for row in actions for action in row]
        self.busy_s = sum(done) + sum(self._update_s)
        """Seconds of computation of all ranks in a step."""

    def period_s(self) -> float:
        """Seconds from step to step once all ranks keep the same pace; longer ones come before."""
        ends = [0.0] * len(self._actions)
        for _ in range(_MAX_STEPS):
            before, ends = ends, self._step(ends)
            gaps = [b - a for a, b in zip(before, ends, strict=True)]
            if max(gaps) - min(gaps) <= _SAME * max(gaps):
                break
        return max(gaps)

    def _step(self, free: Sequence[float]) -> list[float]:
        """When every rank is done with a step, by when it was done with the one before."""
        self._free, self._arrived = list(free), self._beginning.copy()
        self._wire_free: dict[tuple[int, int], float] = {}
        left = [deque(row) for row in self._actions]
        while any(left):
            able = [r for r, row in enumerate(left) if row and row[0] in self._arrived]
            assert able, f"no rank can go on: {[row[0] for row in left if row]}"
            for rank in able:
                self._do(rank, left[rank].popleft())
        return [s + update_s for s, update_s in zip(self._free, self._update_s, strict=True)]

    def _do(self, rank: int, action: Action) -> None:
        start = max(self._free[rank], self._arrived[action])
        end = self._free[rank] = start + self._seconds[action[:2]]
        for following in self._following(action):
            to = self._rank_of[following.chunk]
            if to != rank:
                start = max(self._free[rank], self._wire_free.get((rank, to), 0.0))
                sent = start + self._transfer_s[min(action.chunk, following.chunk)]
                self._wire_free[rank, to] = sent
                self._free[rank] = end if self._link.overlaps else sent
            self._arrived[following] = end if to == rank else sent + self._link.latency_s

    def _following(self, action: Action) -> list[Action]:
        """What an action makes possible."""
        kind, chunk, i = action
        if kind == "F" and chunk < self._last:
            return [Action("F", chunk + 1, i)]
        if kind == "F":
            return [Action(self._back, chunk, i)]
        own = [Action("W", chunk, i)] if kind == "I" else []
        return own + ([Action(self._back, chunk - 1, i)] if kind != "W" and chunk > 0 else [])


def _predict_data_parallel(work: PipelineWork, num_ranks: int, link: Link) -> Prediction:
    """Every rank computes a share of the batch; a ring reduces gradients when they are ready."""
    if work.parameter_bytes is None and num_ranks > 1:
        raise RecipeError("ddp reduces gradients: give parameter_bytes, a number for every chunk.")
    computed = sum(map(sum, work.piece_s(num_ranks))) + 2 * work.overhead_s
    reduced = 0.0
    for ready, num_bytes in _buckets(work, num_ranks):
        hop_s = link.transfer_s(num_bytes / num_ranks) + link.latency_s
        reduced = max(reduced, ready if link.overlaps else computed) + 2 * (num_ranks - 1) * hop_s
    update_s = sum(work.update_s)
    seconds = max(computed, reduced) + update_s
    idle = 1 - (computed + update_s) / seconds if seconds else 0.0
    return Prediction(seconds, idle, (1.0,) * num_ranks)


def _buckets(work: PipelineWork, num_ranks: int) -> Iterator[tuple[float, float]]:
    """When gradients are ready to be reduced, the last chunk's first, and how many bytes."""
    forward_s, backward_s = work.piece_s(num_ranks)
    now = sum(forward_s) + 2 * work.overhead_s
    waiting = 0.0
    for chunk, num_bytes in reversed(tuple(enumerate(work.parameter_bytes or ()))):
        num_pieces = max(1, math.ceil(num_bytes / _BUCKET_BYTES))
        for _ in range(num_pieces):
            now += backward_s[chunk] / num_pieces
            waiting += num_bytes / num_pieces
            if waiting >= _BUCKET_BYTES:
                yield now, waiting
                waiting = 0.0
    if waiting:
        yield now, waiting
