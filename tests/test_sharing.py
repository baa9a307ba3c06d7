"""The search for replicas of single blocks, against all that could be chosen."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from ppll.config import Recipe
from ppll.errors import RecipeError
from ppll.placement import place_alike
from ppll.planning.costs import Costs, LayerCosts
from ppll.planning.plan import draw_plan
from ppll.planning.planned import BlockTable, memory_bytes, stage_times
from ppll.planning.sharing import best_shares
from ppll.simulation.clusters import Cluster, crossed, simulate_cluster
from ppll.simulation.line_times import line_s
from ppll.simulation.links import Link, Pipeline, StageTimes
from tests.test_plan import FREE, MIB, costs_of, even_costs, layer, recipe


def costs_by_block(ms: list[float], base: Recipe, **changes: Any) -> Costs:
    """A layer a block, that takes so many ms with its exit."""
    layers = [layer(each, f"layer{i}", **changes) for i, each in enumerate(ms)]
    return costs_of(layers, [0.0] * len(ms), base)


def per_block(num_blocks: int) -> Recipe:
    return recipe(blocks=num_blocks, cuts=list(range(1, num_blocks)))


# --- shards --------------------------------------------------------------------------------------


def test_a_shard_takes_less_but_for_what_is_fixed() -> None:
    whole = LayerCosts(
        name="a",
        **{"forward_s": 5.0, "backward_s": 9.0, "backward_first_s": 3.0, "update_s": 7.0},
        **{"features_bytes": 80, "activation_bytes": 40, "parameter_bytes": 11},
        **{"forward_fixed_s": 1.0, "backward_fixed_s": 5.0},
    )
    half = whole.for_share(0.5)
    assert (half.forward_s, half.backward_s, half.update_s) == (3.0, 7.0, 7.0)
    assert half.backward_first_s == 3.0  # No more of it can be fixed than there is.
    assert (half.features_bytes, half.activation_bytes, half.parameter_bytes) == (40, 20, 11)


def test_costs_know_how_much_is_fixed() -> None:
    costs = even_costs(recipe(blocks=2, cuts=[4]), forward_fixed_s=1e-3, backward_fixed_s=0.5e-3)
    seconds = 8 * 3e-3 + 7 * 0.5e-3 + 0.1e-3
    assert costs.fixed_share == pytest.approx(8 * 1.5e-3 / seconds)
    assert costs.for_samples(8) is costs
    assert costs.for_samples(2).message_size == 2


def test_a_block_with_replicas_by_hand() -> None:
    """Half of a pass, the whole update, and what adding up takes."""
    base = per_block(3).with_settings(["train.replicas=[2, 1, 1]"])
    costs = costs_by_block([6, 3, 3], base, update_s=1e-3, parameter_bytes=MIB)
    link = Link(1e9, 1e-4)
    plan = draw_plan(base, costs, 3, link)
    first = plan.blocks[0]
    assert (first.replicas, first.samples, plan.num_processes) == (2, 4, 4)
    assert first.forward_s == pytest.approx(1e-3)
    assert first.learn_s == pytest.approx(1.5e-3 + 1e-3)
    assert first.add_up_s == pytest.approx(line_s(MIB + 5, 2, link) + line_s(8, 2, link))
    assert plan.unshared[0].forward_s == pytest.approx(2e-3)
    assert plan.one_stage_s == pytest.approx(sum(b.seconds for b in plan.unshared))
    assert plan.samples_per_second == pytest.approx(8 / plan.seconds_per_message)
    assert [row["replicas"] for row in plan.rows()] == [2, 1, 1]


def test_memory_of_shards() -> None:
    """A shard's activations; the second stage joins a message beside its four slots."""
    base = per_block(2).with_settings(["train.replicas=[2, 1]"])
    plan = draw_plan(base, costs_by_block([6, 3], base), 2, FREE)
    first, second = plan.stages
    assert first.memory_bytes == 4 * 15 + 4 * MIB // 2 + 15 + 3 * 15
    assert second.memory_bytes == 4 * 15 + 4 * MIB + 5 * MIB
    assert memory_bytes(base, plan.unshared[1:]) == 4 * 15 + 4 * MIB + 4 * MIB


def shared_by(num: int, *settings: str) -> Recipe:
    sharding = [f"train.replicas={num}", "runtime.sharding=fsdp"]
    return per_block(2).with_settings([*sharding, *settings])


def test_memory_where_replicas_share_parameters() -> None:
    """AdamW's four tensors of two blocks of 9 MiB, of which one layer is whole three times: its
    parameters, its gradients, and the sums of the one after it."""
    base = shared_by(4)
    sizes = {"parameter_bytes": 9 * MIB, "activation_bytes": 40 * MIB}
    costs = costs_by_block([6, 3], per_block(2), **sizes)
    (stage,) = draw_plan(base, costs, 1, FREE).stages
    parameters, slots = 2 * (9 * MIB + 5), 2 * 7 * MIB
    activations = (40 + 1) * MIB // 4
    assert stage.memory_bytes == parameters + slots + activations + 3 * 9 * MIB
    # Averages are shares, too; gradients of parts of a batch are whole until the last.
    averaged = draw_plan(shared_by(4, "train.ema=0.9"), costs, 1, FREE).stages[0]
    assert averaged.memory_bytes == stage.memory_bytes + -(-parameters // 4)
    parted = shared_by(4, "train.accumulate=2")
    costs = costs_by_block([6, 3], parted, **sizes)  # Of messages of one sample, not of eight.
    in_parts = draw_plan(parted, costs, 1, FREE).stages[0]
    assert in_parts.memory_bytes == stage.memory_bytes + parameters + 3 * activations


def test_an_evaluation_holds_a_stage_whole() -> None:
    """Four blocks of 9 MiB in one stage, with next to no activations."""
    base = per_block(4).with_settings(["train.replicas=2", "runtime.sharding=fsdp"])
    costs = costs_by_block([6] * 4, base, parameter_bytes=9 * MIB, activation_bytes=0)
    (stage,) = draw_plan(base, costs, 1, FREE).stages
    parameters = 4 * (9 * MIB + 5)
    assert stage.memory_bytes == 2 * parameters + 3 * MIB + parameters + 9 * MIB


def test_what_a_block_alone_holds_is_nobodys_share() -> None:
    uneven = per_block(2).with_settings(["train.replicas=[4, 1]", "runtime.sharding=fsdp"])
    costs = costs_by_block([6, 3], uneven, parameter_bytes=9 * MIB)
    with_shares = draw_plan(uneven, costs, 2, FREE).stages
    without = draw_plan(uneven.with_settings(["runtime.sharding=none"]), costs, 2, FREE).stages
    assert with_shares[0].memory_bytes < without[0].memory_bytes
    assert with_shares[1] == without[1]


def test_copies_of_a_pipeline_are_planned_too() -> None:
    base = per_block(2).with_settings(["train.replicas=4"])
    costs = costs_by_block([6, 6], per_block(2))
    plan = draw_plan(base, costs, 2, FREE)
    assert plan.num_processes == 8
    assert plan.speedup == pytest.approx(plan.bound) == pytest.approx(8, rel=0.1)


def test_parts_of_a_batch_share_what_is_added_up() -> None:
    base = per_block(2).with_settings(["train.replicas=2"])
    parted = base.with_settings(["train.accumulate=4"])
    link = Link(1e9)
    one, four = (
        draw_plan(r, costs_by_block([6, 6], r, parameter_bytes=MIB), 2, link).blocks[0]
        for r in (base, parted)
    )
    assert four.add_up_s == pytest.approx(one.add_up_s / 4)
    assert (one.samples, four.samples) == (4, 1)


@pytest.mark.parametrize("buffers", [False, True], ids=["channels", "network"])
@pytest.mark.parametrize("replicas", [(2, 1, 1), (4, 1, 2), (1, 4, 2), (1, 1, 4)], ids=str)
def test_a_plan_and_a_cluster_of_the_same_numbers_agree(
    replicas: tuple[int, ...], buffers: bool
) -> None:
    """Joining, passing on in parts and adding up; features of 16 MiB take most of the time."""
    base = per_block(3).with_settings([f"train.replicas={list(replicas)}"])
    costs = costs_by_block([6, 3, 3], base, features_bytes=16 * MIB, parameter_bytes=MIB)
    link = Link(5e9, 1e-5, buffers=buffers)
    plan = draw_plan(base, costs, 3, link)
    stages = [StageTimes(b.forward_s, b.learn_s, b.features_bytes) for b in plan.blocks]
    gradients = [block.parameter_bytes for block in plan.blocks]
    found = simulate_cluster(Cluster(1, link, link, replicas), stages, gradients, 500)
    assert plan.seconds_per_message == pytest.approx(found.pipeline.seconds_per_batch)
    busy = [1 - stage.idle for stage in plan.stages]
    assert busy == pytest.approx(found.pipeline.busy_fraction)


def test_stages_must_suit_the_replicas() -> None:
    base = per_block(3).with_settings(["train.replicas=[2, 1, 1]"])
    with pytest.raises(RecipeError, match="ask for 2 to 3 stages"):
        draw_plan(base, costs_by_block([6, 3, 3], base), 1, FREE)


# --- the search ----------------------------------------------------------------------------------


def all_shares(num_blocks: int, most: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Every allowed way to share blocks, and every number of stages for it."""
    for replicas in itertools.product(range(1, most + 1), repeat=num_blocks):
        pairs = list(itertools.pairwise(replicas))
        fits = all(max(replicas) % num == 0 for num in replicas)
        if fits and all(max(pair) % min(pair) == 0 for pair in pairs):
            for num_stages in range(1 + sum(a != b for a, b in pairs), num_blocks + 1):
                yield replicas, num_stages


def slowest_s(table: BlockTable, starts: list[int], shares: tuple[tuple[int, ...], int]) -> float:
    replicas, num_stages = shares
    blocks = [
        table.block(*at, r) for at, r in zip(itertools.pairwise(starts), replicas, strict=True)
    ]
    stages = [[blocks[i] for i in stage] for stage in place_alike(replicas, num_stages)]
    nums = [stage[0].replicas for stage in stages]
    links = (table.link,) * (num_stages - 1)
    times = crossed([stage_times(stage) for stage in stages], nums, links)
    return Pipeline(times, links, load_s=table.sized(nums[0]).load_s).slowest_s


def brute_force(table: BlockTable, starts: list[int], num_processes: int) -> tuple[float, int]:
    most = min(num_processes, table.recipe.data.batch_size)
    found = []
    for replicas, num_stages in all_shares(len(starts) - 1, most):
        stages = place_alike(replicas, num_stages)
        used = sum(replicas[stage.start] for stage in stages)
        if used <= num_processes:
            found.append((slowest_s(table, starts, (replicas, num_stages)), used))
    return min(found)


@hypothesis.given(
    ms=st.lists(st.floats(0.1, 20), min_size=1, max_size=4),
    num_processes=st.integers(1, 7),
    link=st.builds(
        Link, st.sampled_from([1e8, 1e9, 1e12]), st.sampled_from([0, 1e-4]), st.booleans()
    ),
    network=st.booleans(),
    fixed_s=st.sampled_from([0.0, 1e-4, 2e-3]),
    parameter_bytes=st.sampled_from([10, MIB]),
    load_s=st.sampled_from([0.0, 3e-3]),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_nothing_that_could_be_chosen_is_faster(
    ms: list[float],
    num_processes: int,
    link: Link,
    network: bool,
    fixed_s: float,
    parameter_bytes: int,
    load_s: float,
) -> None:
    base = per_block(len(ms))
    link = Link(link.bandwidth_bytes_s, link.latency_s, link.overlaps or network, network)
    costs = costs_by_block(
        ms, base, forward_fixed_s=fixed_s, parameter_bytes=parameter_bytes
    ).model_copy(update={"load_s": load_s})
    table, starts = BlockTable(base, costs, link), list(range(len(ms) + 1))
    found = best_shares(table, starts, num_processes)
    expected_s, used = brute_force(table, starts, num_processes)
    assert found.slowest_s == pytest.approx(expected_s)
    assert slowest_s(table, starts, (found.replicas, found.num_stages)) == found.slowest_s
    if found.slowest_s == expected_s:
        assert found.num_processes == used
    # What was searched by is what the simulation says, where no latency holds credits up.
    shared = base.with_settings([f"train.replicas={list(found.replicas)}"])
    if not link.latency_s and not network:
        plan = draw_plan(shared, costs, found.num_stages, link)
        assert plan.seconds_per_message == pytest.approx(found.slowest_s)


def test_the_slow_block_gets_the_processes() -> None:
    base = per_block(3)
    costs = costs_by_block([12, 4, 4], base, parameter_bytes=MIB)
    # Adding up takes long, so those that need no replicas have none.
    table = BlockTable(base, costs, Link(latency_s=1e-4))
    found = best_shares(table, [0, 1, 2, 3], 5)
    assert (found.replicas, found.num_stages, found.num_processes) == ((3, 1, 1), 3, 5)
    assert len(set(best_shares(table, [0, 1, 2, 3], 5, most_groups=1).replicas)) == 1


def test_many_blocks_are_searched_by_few_groups() -> None:
    base = per_block(16)
    costs = costs_by_block([20.0, *[2.0] * 15], base)
    found = best_shares(BlockTable(base, costs, FREE), list(range(17)), 24)
    assert found.replicas[0] > 1
    assert found.num_processes <= 24
    assert len(list(itertools.groupby(found.replicas))) <= 3
