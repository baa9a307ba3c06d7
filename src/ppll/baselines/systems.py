"""What each rival is, how it lays chunks on ranks, and what it cannot do (no torch).

A **chunk** is a run of consecutive layers that a rank computes as one; a rank of an interleaved
schedule has several. A **micro-batch** is a slice of the batch; a pipeline updates once a batch,
when the gradients of all its micro-batches are there, so every rival makes the update of plain
backpropagation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ppll.errors import RecipeError, unknown_name

__all__ = ["SYSTEMS", "Layout", "System", "system_named"]


@dataclass(frozen=True)
class System:
    """One way to train by backpropagation.

    Attributes:
        name: What it is called.
        summary: One line for people who choose.
        kind: One process, replicas of the whole network, or a pipeline of its chunks.
        schedule: Class of ``torch.distributed.pipelining``; pipelines only.
        chunks_per_rank: Chunks of a rank; pipelines only.
        is_v: Whether a rank's second chunk lies as far from the end as its first from the
            beginning, so that the last rank's two are neighbours.
        splits: Whether the weights' gradients are made apart from the input's.
        rounds: Whether micro-batches go in rounds of as many as there are ranks, or more.
        fills: Whether there must be as many micro-batches as ranks.
    """

    name: str
    summary: str
    kind: Literal["single", "replicas", "pipeline"] = "pipeline"
    schedule: str = ""
    chunks_per_rank: int = 1
    is_v: bool = False
    splits: bool = False
    rounds: bool = False
    fills: bool = False


SYSTEMS: Final = {
    system.name: system
    for system in (
        System("backprop", "plain backpropagation on one device", "single"),
        System("ddp", "DistributedDataParallel: every rank a slice of the batch", "replicas"),
        System("gpipe", "all forwards, then all backwards", schedule="ScheduleGPipe"),
        System("1f1b", "one forward, one backward", schedule="Schedule1F1B", fills=True),
        System(
            "interleaved",
            "1F1B with two chunks a rank",
            schedule="ScheduleInterleaved1F1B",
            chunks_per_rank=2,
            rounds=True,
        ),
        System(
            "zero-bubble",
            "ZB1P with two chunks a rank: weight gradients fill the bubble",
            schedule="ScheduleInterleavedZeroBubble",
            chunks_per_rank=2,
            splits=True,
            rounds=True,
        ),
        System(
            "zero-bubble-v",
            "ZB-V: the same, and a rank's two chunks lie in a V",
            schedule="ScheduleZBVZeroBubble",
            chunks_per_rank=2,
            is_v=True,
            splits=True,
        ),
    )
}
"""Every rival by name."""


def system_named(name: str) -> System:
    """The rival of that name.

    Raises:
        RecipeError: There is none.
    """
    if name not in SYSTEMS:
        raise RecipeError(unknown_name("system", name, SYSTEMS))
    return SYSTEMS[name]


@dataclass(frozen=True)
class Layout:
    """A rival on a number of ranks.

    Attributes:
        system: The rival.
        num_ranks: Processes.
        num_microbatches: Slices of a batch that go through the pipeline one by one.
        num_batches: Batches of the run.
        warm_up: How many of them, from the first on, are not timed.

    Raises:
        RecipeError: The rival cannot be run so.
    """

    system: System
    num_ranks: int
    num_microbatches: int
    num_batches: int
    warm_up: int = 0

    def __post_init__(self) -> None:
        _check_counts(self)
        if self.system.kind == "pipeline":
            _check_pipeline(self)
        elif self.num_microbatches != 1:
            raise RecipeError(
                f"{self.system.name} takes a batch whole, found {self.num_microbatches} "
                f"micro-batches: ask for 1."
            )

    @property
    def num_chunks(self) -> int:
        """Chunks that a pipeline cuts the network into; 1 where it is not cut."""
        is_cut = self.system.kind == "pipeline"
        return self.num_ranks * self.system.chunks_per_rank if is_cut else 1

    @property
    def num_slices(self) -> int:
        """Parts of a batch that a chunk computes one at a time or one a rank."""
        return self.num_ranks if self.system.kind == "replicas" else self.num_microbatches

    def chunks_of(self, rank: int) -> tuple[int, ...]:
        """The chunks that a rank computes, in forward order."""
        if self.system.kind != "pipeline":
            return (0,)
        if self.system.is_v:
            return rank, 2 * self.num_ranks - 1 - rank
        return tuple(range(rank, self.num_chunks, self.num_ranks))

    def reads_inputs(self, rank: int) -> bool:
        """Whether a rank computes the first chunk."""
        return 0 in self.chunks_of(rank)

    def reads_targets(self, rank: int) -> bool:
        """Whether a rank computes the last chunk and the loss."""
        return self.num_chunks - 1 in self.chunks_of(rank)


def _check_counts(layout: Layout) -> None:
    name, num_ranks = layout.system.name, layout.num_ranks
    if layout.system.kind == "single" and num_ranks != 1:
        raise RecipeError(f"{name} runs on one rank, found {num_ranks}: ask for 1.")
    if layout.system.kind != "single" and num_ranks < 2:
        raise RecipeError(f"{name} needs at least 2 ranks, found {num_ranks}: ask for more.")
    if layout.num_microbatches < 1:
        raise RecipeError(
            f"a batch has at least 1 micro-batch, found {layout.num_microbatches}: ask for more."
        )
    if not 0 <= layout.warm_up < layout.num_batches:
        raise RecipeError(
            f"{layout.warm_up} of {layout.num_batches} batches are to be left untimed: keep "
            f"that from 0 to below the number of batches, which is at least 1."
        )


def _check_pipeline(layout: Layout) -> None:
    """What torch's schedules need; they say so themselves, but in every process and too late."""
    name, num_ranks, num = layout.system.name, layout.num_ranks, layout.num_microbatches
    if layout.system.fills and num < num_ranks:
        raise RecipeError(
            f"{name} needs at least as many micro-batches as ranks, found {num} for "
            f"{num_ranks} ranks: ask for {num_ranks} or more."
        )
    num_rounds = max(1, num // num_ranks)
    if layout.system.rounds and num % num_rounds:
        raise RecipeError(
            f"{name} deals micro-batches in rounds of {num_ranks} or more, all alike, found {num}: "
            f"ask for {num_ranks * num_rounds} or {num_ranks * (num_rounds + 1)}."
        )
