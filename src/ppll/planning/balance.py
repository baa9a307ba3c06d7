"""Cut a row of layers into blocks so that the slowest block is as fast as can be (no torch).

A pipeline without a backward pass between stages takes, for every batch, as long as its slowest
block. What a block takes is not the sum of its layers: the auxiliary network stands at its last
layer and depends on the shape of the features there, so thresholds on running sums and binary
search miss the optimum. Dynamic programming does not::

    best[k][start] = min over stop of join(cost(start, stop), best[k - 1][stop])

with ``join`` the larger of two times. It is exact and takes O(K L^2) steps for K blocks of L
layers. (PipeDream's planner, Narayanan et al., SOSP 2019, section 3.1, without its replicas.)
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from ppll.errors import ModelError

__all__ = ["BlockCost", "Partition", "best_partition"]

_Score = tuple[float | Fraction, int]
_Found = tuple[_Score, tuple[int, ...]]
"""The joint score of some blocks and the cuts that have it."""


@dataclass(frozen=True)
class BlockCost:
    """What one block takes for one batch, its auxiliary network and transfer included.

    Attributes:
        seconds: Time in which the block can take no other batch.
        memory_bytes: Most that it holds at once.
        features_bytes: What it sends on; 0 for the last block.
    """

    seconds: float
    memory_bytes: int = 0
    features_bytes: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ModelError(
                    f"a block's {name} is {value}: it must be a finite number, at least 0; "
                    f"measure the costs again."
                )


@dataclass(frozen=True)
class Partition:
    """A row of layers as blocks.

    Attributes:
        cuts: First layer of every block but the first.
        seconds: Of every block, for one batch.
    """

    cuts: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def slowest_s(self) -> float:
        """Seconds of the slowest block, which are those of the pipeline."""
        return max(self.seconds)


def best_partition(
    num_layers: int,
    num_blocks: int,
    cost: Callable[[int, int], BlockCost],
    *,
    memory_limit_bytes: int | None = None,
    first_cut_from: int = 1,
    last_cut_to: int | None = None,
) -> Partition:
    """The contiguous partition whose slowest block is fastest.

    Of several such, the one with the least sum of squared block seconds (so the most even), of
    these the one that sends the fewest bytes, of these the one whose cuts come first in
    lexicographic order. Sums are exact, so ties do not hang on rounding.

    Args:
        num_layers: Layers in the row.
        num_blocks: Blocks to make, none of them empty.
        cost: What a block of layers ``start`` to ``stop - 1`` takes; asked at most once for each.
        memory_limit_bytes: No block may hold more.
        first_cut_from: First layer before which a cut may stand; 2 keeps a stem of one layer with
            the layer behind it.
        last_cut_to: Last such layer; ``num_layers - 1`` without.

    Raises:
        ModelError: There are too few places for the cuts, every partition breaks the memory
            limit, or a cost is negative or not finite.
    """
    last = num_layers - 1 if last_cut_to is None else last_cut_to
    cuts = range(first_cut_from, last + 1)
    _check_counts(num_layers, num_blocks, cuts)
    ask = functools.cache(cost)
    search = _Search(num_layers, num_blocks, cuts)

    def fits(start: int, stop: int) -> bool:
        return memory_limit_bytes is None or ask(start, stop).memory_bytes <= memory_limit_bytes

    def slowness(start: int, stop: int) -> _Score | None:
        return (ask(start, stop).seconds, 0) if fits(start, stop) else None

    fastest = search.best(slowness, max)
    if fastest is None:
        need = search.best(lambda a, b: (ask(a, b).memory_bytes, 0), max)
        raise ModelError(_no_memory(num_blocks, memory_limit_bytes, need))
    slowest_s = fastest[0][0]

    def unevenness(start: int, stop: int) -> _Score | None:
        block = ask(start, stop)
        if block.seconds > slowest_s or not fits(start, stop):
            return None
        return Fraction(block.seconds) ** 2, block.features_bytes

    evenest = search.best(unevenness, lambda a, b: (a[0] + b[0], a[1] + b[1]))
    assert evenest is not None, "the slowest block's time came from a partition"
    ranges = itertools.pairwise((0, *evenest[1], num_layers))
    return Partition(evenest[1], tuple(ask(start, stop).seconds for start, stop in ranges))


@dataclass(frozen=True)
class _Search:
    """Finds the best of all partitions under any score that grows with its blocks' scores."""

    num_layers: int
    num_blocks: int
    cuts: range

    def best(
        self,
        score: Callable[[int, int], _Score | None],
        join: Callable[[_Score, _Score], _Score],
    ) -> _Found | None:
        """The least joint score and the first cuts that have it; none if no partition is allowed.

        Args:
            score: Of one block; none if it is not allowed.
            join: Of a block and what follows it.
        """
        tails: dict[int, _Found | None] = {}
        for start in self._starts(self.num_blocks - 1):
            alone = score(start, self.num_layers)
            tails[start] = None if alone is None else (alone, ())
        for num_before in reversed(range(self.num_blocks - 1)):
            starts = self._starts(num_before)
            tails = {start: _lengthened(start, tails, score, join) for start in starts}
        return tails[0]

    def _starts(self, num_before: int) -> range:
        """Where a block may start that has ``num_before`` blocks before it."""
        if num_before == 0:
            return range(1)
        num_after = self.num_blocks - 1 - num_before
        return self.cuts[num_before - 1 : len(self.cuts) - num_after]


def _lengthened(
    start: int,
    tails: Mapping[int, _Found | None],
    score: Callable[[int, int], _Score | None],
    join: Callable[[_Score, _Score], _Score],
) -> _Found | None:
    """The best of one more block, from ``start``, and one of the tails behind it."""
    behind = ((stop, tail) for stop, tail in tails.items() if stop > start and tail is not None)
    options: list[_Found] = []
    for stop, (joint, cuts) in behind:
        block = score(start, stop)
        if block is not None:
            options.append((join(block, joint), (stop, *cuts)))
    return min(options, default=None)


def _check_counts(num_layers: int, num_blocks: int, cuts: range) -> None:
    if num_blocks < 1:
        raise ModelError(f"cannot make {num_blocks} blocks: ask for 1 or more.")
    if num_blocks > num_layers:
        raise ModelError(
            f"cannot make {num_blocks} blocks of {num_layers} layers: ask for 1 to {num_layers} "
            f"blocks, or take a deeper network."
        )
    if num_blocks > 1 and not 1 <= cuts.start <= cuts.stop <= num_layers:
        raise ModelError(
            f"cuts are allowed before layers {cuts.start} to {cuts.stop - 1}, but a network of "
            f"{num_layers} layers has cuts before layers 1 to {num_layers - 1} only: change "
            f"first_cut_from or last_cut_to."
        )
    if num_blocks > len(cuts) + 1:
        raise ModelError(
            f"cannot make {num_blocks} blocks with {len(cuts)} places for cuts (stem and head stay "
            f"whole): ask for 1 to {len(cuts) + 1} blocks, or take a deeper network."
        )


def _no_memory(num_blocks: int, limit_bytes: int | None, need: _Found | None) -> str:
    assert limit_bytes is not None, "without a limit every partition is allowed"
    assert need is not None, "without a limit every partition is allowed"
    return (
        f"no cut into {num_blocks} block(s) keeps every block within the memory limit of "
        f"{limit_bytes:,} bytes: the best needs {int(need[0][0]):,} bytes for its largest block. "
        f"Make more blocks, or take a smaller batch."
    )
