"""The best partition, against all partitions there are."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from ppll.errors import ModelError
from ppll.planning.balance import BlockCost, Partition, best_partition

Cost = Callable[[int, int], BlockCost]

SECONDS = st.one_of(
    st.integers(0, 4).map(float),  # many ties
    st.integers(0, 4).map(lambda tenths: tenths / 10),  # ties that rounding would hide
    st.floats(0, 10),
)


def all_partitions(num_layers: int, num_blocks: int, cuts: range):
    for chosen in itertools.combinations(cuts, num_blocks - 1):
        yield chosen, list(itertools.pairwise((0, *chosen, num_layers)))


def by_brute_force(num_layers: int, num_blocks: int, cost: Cost, limit, cuts: range):
    """The cuts with the least key among all partitions within the limit, if there are any."""
    keys = []
    for chosen, ranges in all_partitions(num_layers, num_blocks, cuts):
        blocks = [cost(*r) for r in ranges]
        if limit is None or max(b.memory_bytes for b in blocks) <= limit:
            squares = sum(Fraction(b.seconds) ** 2 for b in blocks)
            num_bytes = sum(b.features_bytes for b in blocks)
            keys.append((max(b.seconds for b in blocks), squares, num_bytes, chosen))
    return min(keys)[-1] if keys else None


@st.composite
def rows(draw) -> tuple[int, Cost]:
    """Layers that add up, auxiliary networks at the cuts that do not."""
    num_layers = draw(st.integers(1, 8))
    each = st.lists(SECONDS, min_size=num_layers, max_size=num_layers)
    sizes = st.lists(st.integers(0, 3), min_size=num_layers, max_size=num_layers)
    layers, auxiliaries, memory, features = draw(each), draw(each), draw(sizes), draw(sizes)

    def cost(start: int, stop: int) -> BlockCost:
        return BlockCost(
            sum(layers[start:stop]) + auxiliaries[stop - 1],
            sum(memory[start:stop]) + features[stop - 1],
            features[stop - 1] if stop < num_layers else 0,
        )

    return num_layers, cost


@hypothesis.settings(deadline=None, derandomize=True, max_examples=400)
@hypothesis.given(rows(), st.data())
def test_it_is_the_best_of_all(row: tuple[int, Cost], data: st.DataObject) -> None:
    num_layers, cost = row
    first = data.draw(st.integers(1, max(num_layers - 1, 1)), "first_cut_from")
    last = data.draw(st.integers(first - 1, num_layers - 1), "last_cut_to")
    num_blocks = data.draw(st.integers(1, last - first + 2), "num_blocks")
    limit = data.draw(st.none() | st.integers(0, 20), "limit")
    options: dict[str, Any] = {
        "memory_limit_bytes": limit,
        "first_cut_from": first,
        "last_cut_to": last,
    }
    cuts = by_brute_force(num_layers, num_blocks, cost, limit, range(first, last + 1))
    if cuts is None:
        with pytest.raises(ModelError, match="memory limit"):
            best_partition(num_layers, num_blocks, cost, **options)
    else:
        found = best_partition(num_layers, num_blocks, cost, **options)
        assert found.cuts == cuts
        ranges = itertools.pairwise((0, *cuts, num_layers))
        assert found.seconds == tuple(cost(*r).seconds for r in ranges)


@pytest.mark.parametrize("num_blocks", [1, 2, 5, 9])
def test_every_block_is_asked_for_once(num_blocks: int) -> None:
    asked: Counter[tuple[int, int]] = Counter()

    def cost(start: int, stop: int) -> BlockCost:
        asked[start, stop] += 1
        return BlockCost(float(stop - start))

    best_partition(9, num_blocks, cost)
    assert set(asked.values()) == {1}


def test_a_threshold_on_running_sums_fails() -> None:
    """The auxiliary network behind layer 1 is so dear that no threshold finds the cut."""
    layers, auxiliaries = [4.0, 2.0, 2.0, 4.0], [1.0, 9.0, 3.0, 0.0]

    def cost(start: int, stop: int) -> BlockCost:
        return BlockCost(sum(layers[start:stop]) + auxiliaries[stop - 1])

    half = sum(layers) / 2
    sums = list(itertools.accumulate(layers))
    greedy = next(i for i, done in enumerate(sums, 1) if done >= half)
    assert max(cost(0, greedy).seconds, cost(greedy, 4).seconds) == 15.0
    assert best_partition(4, 2, cost) == Partition((1,), (5.0, 8.0))
    assert best_partition(4, 2, cost).slowest_s == 8.0


def test_of_equally_slow_partitions_the_evenest_is_taken() -> None:
    """Layer 2 is the slowest whatever is done with the rest."""
    seconds = [1.0, 1.0, 9.0, 1.0, 1.0, 1.0, 1.0]
    found = best_partition(7, 4, lambda a, b: BlockCost(sum(seconds[a:b])))
    assert found.cuts == (2, 3, 5)
    assert found.seconds == (2.0, 9.0, 2.0, 2.0)


def test_then_the_one_that_sends_least_then_the_first() -> None:
    sizes = [8, 8, 2, 8]

    def cost(start: int, stop: int) -> BlockCost:
        return BlockCost(1.0, features_bytes=sizes[stop - 1] if stop < 4 else 0)

    assert best_partition(4, 2, cost).cuts == (3,)
    assert best_partition(4, 3, cost).cuts == (1, 3)


def test_a_hundred_layers_are_done_at_once() -> None:
    found = best_partition(128, 16, lambda a, b: BlockCost(float(b - a)))
    assert found.seconds == (8.0,) * 16


@pytest.mark.parametrize(
    ("num_layers", "num_blocks", "options", "message"),
    [
        (4, 0, {}, "cannot make 0 blocks: ask for 1 or more"),
        (4, 5, {}, "5 blocks of 4 layers: ask for 1 to 4 blocks"),
        (6, 4, {"first_cut_from": 2, "last_cut_to": 3}, "with 2 places .* ask for 1 to 3"),
        (4, 2, {"first_cut_from": 0}, "before layers 0 to 3, but .* layers 1 to 3 only"),
        (4, 2, {"last_cut_to": 4}, "before layers 1 to 4, but .* layers 1 to 3 only"),
        (
            4,
            2,
            {"memory_limit_bytes": 19},
            "2 block.* limit of 19 bytes: the best needs 20 bytes .* more blocks, or .* batch",
        ),
    ],
)
def test_what_cannot_be_is_refused(num_layers, num_blocks, options, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        best_partition(num_layers, num_blocks, lambda a, b: BlockCost(1.0, 10 * (b - a)), **options)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_costs_that_cannot_be_are_refused(seconds: float) -> None:
    with pytest.raises(ModelError, match=r"seconds is .* finite number, at least 0"):
        BlockCost(seconds)
