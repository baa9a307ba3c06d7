"""Law 1: any placement, the same bits."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from ppll.message import Kind
from tests.interleaving import (
    NETWORKS,
    OPTIMIZERS,
    MadeUpBatches,
    blueprint_of,
    built_blocks,
    digest,
    interleave,
    make_workers,
    small_recipe,
    train_interleaved,
)
from tests.thinning import slow_but

LOCAL_METHODS = ("greedy", "dgl")


@functools.cache
def sequential_digest(network: str, method: str, optimizer: str) -> str:
    return digest(train_interleaved(small_recipe(network, method, optimizer), num_stages=1))


@pytest.mark.parametrize(
    ("num_stages", "capacity"), slow_but([(4, 1), (4, 8)], [(2, 2), (4, 1), (4, 8)])
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", slow_but(["dgl"], LOCAL_METHODS))
def test_stages_and_capacity_do_not_change_a_bit(
    method: str, network: str, optimizer: str, num_stages: int, capacity: int
) -> None:
    """Batch norm or dropout, a short last batch, SGD or AdamW, the last stage always first."""
    blocks = train_interleaved(
        small_recipe(network, method, optimizer),
        num_stages,
        capacity=capacity,
        choose=lambda num_able: num_able - 1,
    )
    assert digest(blocks) == sequential_digest(network, method, optimizer)


@hypothesis.settings(max_examples=8, deadline=None, derandomize=True)
@hypothesis.given(
    network=st.sampled_from(sorted(NETWORKS)),
    num_stages=st.sampled_from([2, 3, 4]),
    capacity=st.sampled_from([1, 2, 8]),
    random=st.randoms(use_true_random=False),
)
def test_no_interleaving_changes_a_bit(network, num_stages, capacity, random) -> None:
    blocks = train_interleaved(
        small_recipe(network), num_stages, capacity=capacity, choose=random.randrange
    )
    assert digest(blocks) == sequential_digest(network, "dgl", "sgd")


def test_every_interleaving_of_a_small_run_gives_the_same_bits() -> None:
    """All schedules of three stages over two batches and the stop, one after the other."""
    recipe = small_recipe("vit", split_blocks=3, max_steps=2)
    digests = list(all_schedules(recipe, MadeUpBatches(sizes=(2, 2))))
    assert len(set(digests)) == 1
    assert len(digests) > 20


def all_schedules(recipe, batches) -> Iterator[str]:
    """Depth-first through every choice of which worker goes on, among those that can."""
    blueprint = blueprint_of(recipe, batches)
    prefix: list[int] = []
    while True:
        blocks = built_blocks(blueprint)
        workers = make_workers(blueprint, blocks, batches, 3, 1, kinds=(Kind.TRAIN, Kind.STOP))
        taken: list[tuple[int, int]] = []

        def choose(num_able: int, taken=taken, prefix=prefix) -> int:
            choice = prefix[len(taken)] if len(taken) < len(prefix) else 0
            taken.append((choice, num_able))
            return choice

        interleave(workers, choose)
        yield digest(blocks)
        while taken and taken[-1][0] == taken[-1][1] - 1:
            taken.pop()
        if not taken:
            return
        prefix = [choice for choice, _ in taken]
        prefix[-1] += 1


def test_another_seed_gives_other_bits() -> None:
    """The digest sees what it should see."""
    digests = {
        digest(train_interleaved(small_recipe("vit", seed=seed), num_stages=1)) for seed in (0, 1)
    }
    assert len(digests) == 2


def test_evaluation_between_batches_does_not_change_a_bit() -> None:
    with_evaluation = train_interleaved(small_recipe("vit", evaluate_every=1), num_stages=2)
    without = train_interleaved(small_recipe("vit", evaluate_every=0), num_stages=2)
    assert digest(with_evaluation) == digest(without)


def test_bf16_is_the_same_on_every_placement() -> None:
    digests = {
        digest(train_interleaved(small_recipe("vit", precision="bf16"), num_stages))
        for num_stages in (1, 2, 4)
    }
    assert len(digests) == 1


@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_around_a_run_does_not_change_a_bit(enabled: bool) -> None:
    """Torch forgets the cast weights of a step only where its outermost context ends."""
    recipe = small_recipe("vit", precision="bf16")
    alone = digest(train_interleaved(recipe, 1))
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        around = digest(train_interleaved(recipe, 1))
    assert around == alone


def test_blocks_with_schedules_of_their_own_on_every_placement() -> None:
    """A block without an override is as it would be without those of the others."""
    settings = ["schedule.blocks.0.name=constant", "schedule.blocks.2.warmup_epochs=1"]
    base = small_recipe().with_settings(settings)
    runs = [train_interleaved(base, stages) for stages in (1, 2, 4)]
    assert len({digest(blocks) for blocks in runs}) == 1
    blueprint = blueprint_of(base, MadeUpBatches())
    factors = [block.updates.schedule.factor(1) for block in built_blocks(blueprint)]
    assert factors == [2 / 3, 2 / 3, 1 / 3, 2 / 3]


@pytest.mark.parametrize(
    ("network", "accumulate"),
    slow_but([("resnet", 3), ("vit", 2)], itertools.product(NETWORKS, [2, 3])),
)
def test_a_batch_in_parts_gives_the_same_bits_on_every_placement(
    network: str, accumulate: int
) -> None:
    """The last batch of an epoch is short; batch norm needs two samples of a part."""
    recipe = small_recipe(network, "dgl", "adamw", accumulate=accumulate)
    batches = MadeUpBatches(sizes=(6, 6, 4))
    digests = {
        digest(
            train_interleaved(recipe, stages, capacity=c, choose=lambda n: n - 1, batches=batches)
        )
        for stages, c in ((1, 1), (2, 1), (4, 2))
    }
    assert len(digests) == 1
    assert digests != {sequential_digest(network, "dgl", "adamw")}


def test_every_stage_sees_the_whole_stream() -> None:
    recipe = small_recipe()
    batches = MadeUpBatches()
    blueprint = blueprint_of(recipe, batches)
    workers = make_workers(blueprint, built_blocks(blueprint), batches, 4, capacity=2)
    interleave(workers, lambda num_able: 0)
    assert {worker.last_message.kind for worker in workers} == {Kind.STOP}
    assert {worker.monitor.num_samples for worker in workers} == {30}
    assert [set(worker.exits["test"]) for worker in workers] == [{0}, {1}, {2}, {3}]
