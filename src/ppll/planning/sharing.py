"""How many processes should share each block's batches (no torch).

A number of processes can be had from a recipe in several ways: a stage each, copies of the whole
pipeline, or replicas of the blocks that take longest. The search looks for ``train.replicas``, one
number a block, and the stages that carry them out, so that the slowest stage, link or loader is
fastest; of several such for the fewest processes.

A *shape* says which blocks that follow each other have equally many replicas, and what stages they
are dealt to (by ``place_alike``, as in a run). K blocks have fewer than K 2^(K - 1) shapes. In each
of them numbers are tried from the first group on, and left as soon as they are slower than what was
found, or leave the other groups too few processes to be as fast. So the search is exact up to
``EXACT_BLOCKS`` blocks. Of more, only shapes of up to ``MOST_GROUPS`` groups are looked at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from ppll.errors import DataError
from ppll.placement import place_alike
from ppll.planning.planned import BlockTable, stage_times
from ppll.simulation.clusters import crossed
from ppll.simulation.links import Link, StageTimes

__all__ = ["EXACT_BLOCKS", "MOST_GROUPS", "MOST_REPLICAS", "Shares", "best_shares"]

EXACT_BLOCKS: Final = 12
MOST_GROUPS: Final = 3
MOST_REPLICAS: Final = 32
"""As ``train.replicas`` has it."""

_Group = tuple[range, ...]
"""Blocks of every stage of a group."""


@dataclass(frozen=True)
class Shares:
    """How blocks are shared.

    Attributes:
        slowest_s: What the slowest stage, link or loader takes for a message.
        num_processes: Of all stages.
        replicas: Of every block.
        num_stages: That carry them out.
    """

    slowest_s: float
    num_processes: int
    replicas: tuple[int, ...]
    num_stages: int


def best_shares(
    table: BlockTable,
    starts: Sequence[int],
    num_processes: int,
    *,
    most_groups: int | None = None,
) -> Shares:
    """The fastest way to share blocks among processes.

    Args:
        table: Of the recipe.
        starts: First layer of every block, and the end of the last.
        num_processes: No more are used, and fewer where more would not help.
        most_groups: Groups of blocks with unlike numbers; 1 gives copies of the whole pipeline.
    """
    num_blocks = len(starts) - 1
    if most_groups is None:
        most_groups = num_blocks if num_blocks <= EXACT_BLOCKS else MOST_GROUPS
    search = _Search(table, starts, num_processes)
    for shape in _shapes(num_blocks, min(most_groups, num_blocks)):
        search.look_at(shape)
    assert search.best is not None, "one process can carry out all blocks"
    return search.best


def _shapes(num_blocks: int, most_groups: int) -> Iterator[tuple[_Group, ...]]:
    """All ways to make groups of a row of blocks, and stages of groups."""
    for num_groups in range(1, most_groups + 1):
        for cuts in itertools.combinations(range(1, num_blocks), num_groups - 1):
            bounds = [0, *cuts, num_blocks]
            names = [i for i, (a, b) in enumerate(itertools.pairwise(bounds)) for _ in range(a, b)]
            for num_stages in range(num_groups, num_blocks + 1):
                stages = place_alike(names, num_stages)
                yield tuple(
                    tuple(stage for stage in stages if names[stage.start] == group)
                    for group in range(num_groups)
                )


@dataclass
class _Search:
    """Keeps the best of what it has looked at."""

    table: BlockTable
    starts: Sequence[int]
    num_processes: int
    best: Shares | None = None
    _seconds: dict[tuple[_Group, int, int], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        recipe = self.table.recipe
        # A shard has a sample for each of its messages.
        smallest = recipe.data.batch_size // recipe.train.accumulate
        numbers = range(1, min(MOST_REPLICAS, smallest, self.num_processes) + 1)
        # What the block with the most may have.
        self._largest = [replicas for replicas in numbers if self._may_share(replicas)]
        self._most = max(self._largest)

    def _may_share(self, replicas: int) -> bool:
        """Whether shards are large enough where no block has more replicas."""
        train = self.table.recipe.train.model_copy(update={"replicas": replicas})
        try:
            self.table.costs.check_messages(self.table.recipe.model_copy(update={"train": train}))
        except DataError:
            return False
        return True

    def look_at(self, shape: Sequence[_Group]) -> None:
        """Find the best numbers for the groups of a shape."""
        least = [self._least_processes(group) for group in shape]
        if sum(least) <= self.num_processes:
            self._extend(shape, least, (), 0, 0.0)

    def _extend(
        self,
        shape: Sequence[_Group],
        least: Sequence[float],
        chosen: tuple[int, ...],
        used: int,
        slowest_s: float,
    ) -> None:
        """Choose the replicas of the groups that have none yet.

        Args:
            shape: All groups.
            least: Processes that every group needs to be as fast as the best, if it can.
            chosen: Of the first groups.
            used: Processes of these.
            slowest_s: Of these.
        """
        index = len(chosen)
        if index == len(shape):
            if math.lcm(*chosen) == max(chosen) and max(chosen) in self._largest:
                self._keep(shape, chosen, used, slowest_s)
            return
        group, rest = shape[index], sum(least[index + 1 :])
        for replicas in self._able(chosen):
            processes = used + len(group) * replicas
            if processes + rest > self.num_processes:
                break
            before = chosen[-1] if chosen else 0
            seconds = max(slowest_s, self._group_s(group, replicas, before))
            if self._is_better(seconds, processes + rest):
                self._extend(shape, least, (*chosen, replicas), processes, seconds)

    def _able(self, chosen: tuple[int, ...]) -> Iterator[int]:
        """Numbers that may follow those chosen; the same would make one group of two."""
        before = chosen[-1] if chosen else None
        for replicas in range(1, self._most + 1):
            is_other = replicas != before
            fits = before is None or replicas % before == 0 or before % replicas == 0
            # The largest, which may come later, has to be a multiple of all.
            if is_other and fits and math.lcm(*chosen, replicas) <= self._most:
                yield replicas

    def _is_better(self, seconds: float, processes: float) -> bool:
        best = self.best
        return best is None or (seconds, processes) < (best.slowest_s, best.num_processes)

    def _keep(
        self, shape: Sequence[_Group], chosen: tuple[int, ...], used: int, slowest_s: float
    ) -> None:
        sizes = [sum(len(stage) for stage in group) for group in shape]
        replicas = tuple(r for r, size in zip(chosen, sizes, strict=True) for _ in range(size))
        self.best = Shares(slowest_s, used, replicas, sum(map(len, shape)))

    def _least_processes(self, group: _Group) -> float:
        """What a group needs to be no slower than the best, when nothing has to be joined."""
        limit_s = math.inf if self.best is None else self.best.slowest_s
        able = (r for r in range(1, self._most + 1) if self._group_s(group, r, 0) <= limit_s)
        return len(group) * next(able, math.inf)

    def _group_s(self, group: _Group, replicas: int, before: int) -> float:
        """What the slowest of a group's stages takes, and of the links to them.

        Args:
            group: Its stages.
            replicas: Of all of them.
            before: Of the stage before; 0 leaves out what comes from there.
        """
        key = group, replicas, before
        if key not in self._seconds:
            befores = [before, *[replicas] * (len(group) - 1)]
            stages = (self._stage_s(s, replicas, b) for s, b in zip(group, befores, strict=True))
            self._seconds[key] = max(stages)
        return self._seconds[key]

    def _stage_s(self, stage: range, replicas: int, before: int) -> float:
        """What a stage takes, and the link before it; of the first, the loader."""
        link = self.table.link
        bounds = itertools.pairwise(self.starts[stage.start : stage.stop + 1])
        blocks = [self.table.block(start, stop, replicas) for start, stop in bounds]
        link_after = Link() if stage.stop == len(self.starts) - 1 else link
        own = stage_times(blocks)
        if not before:
            arrives_s = self.table.sized(replicas).load_s if stage.start == 0 else 0.0
            return max(arrives_s, link_after.occupied_s(own))
        start, stop = self.starts[stage.start - 1 : stage.start + 1]
        times = StageTimes(0, 0, self.table.block(start, stop, before).features_bytes)
        sender, own = crossed([times, own], [before, replicas], [link])
        return max(link.transfer_s(sender.features_bytes), link_after.occupied_s(own))
