"""What a number of processes can do for a recipe, and what is recommended."""

from __future__ import annotations

from pathlib import Path

import pytest

import ppll
from ppll.config import Recipe
from ppll.errors import DataError, ModelError, RecipeError
from ppll.planning.costs import Costs, counted_for, measured_for
from ppll.planning.measuring import measure
from ppll.planning.plan import draw_plan
from ppll.planning.processes import choose, list_choices, verdict
from ppll.planning.recommendation import recommend
from ppll.planning.rivals import predict_rivals
from ppll.recipe_files import load_recipe
from ppll.simulation.links import Link
from tests import faults
from tests.test_plan import FREE, MIB, costs_of, even_costs, layer, recipe
from tests.test_sharing import costs_by_block, per_block, shared_by


def test_replicas_of_the_slow_block_pay() -> None:
    base = per_block(4)
    costs = costs_by_block([12, 4, 4, 4], base)
    choices = list_choices(base, costs, 6, Link(latency_s=1e-4))
    chosen = choose(choices)
    assert chosen.plan.recipe.train.replicas == (3, 1, 1, 1)
    assert chosen.recipe.runtime.stages == 4
    assert verdict(choices).startswith("Replicas of single blocks pay: ")
    assert "batch norm" in verdict(choices)
    others = [c.plan.samples_per_second for c in choices if c is not chosen]
    assert chosen.plan.samples_per_second > 1.05 * max(others)


def test_replicas_do_not_pay_where_blocks_are_even() -> None:
    base = per_block(4)
    choices = list_choices(base, costs_by_block([4, 4, 4, 4], base), 4, FREE)
    assert choose(choices) is choices[0]
    assert "do not pay here; take 'a stage each'" in verdict(choices)
    assert "batch norm" not in verdict(choices)


@pytest.mark.parametrize(("bandwidth", "num_stages"), [(1e10, 4), (1e9, 2), (1e8, 1)])
def test_fewer_stages_are_taken_where_links_take_more_than_stages_give(
    bandwidth: float, num_stages: int
) -> None:
    """Little crosses the cut in the middle, and there is too much to add up for replicas."""
    base = per_block(4)
    sizes = {"parameter_bytes": 200 * MIB}
    layers = [layer(4, features_bytes=mib * MIB, **sizes) for mib in (40, 1, 40, 1)]
    costs, link = costs_of(layers, [0.0] * 4, base), Link(bandwidth_bytes_s=bandwidth)
    choices = list_choices(base, costs, 4, link)
    rates = [draw_plan(base, costs, num, link).samples_per_second for num in range(1, 5)]
    chosen = choose(choices)
    assert chosen.recipe.runtime.stages == num_stages
    assert chosen.plan.samples_per_second == max(rates)
    assert f"take {'a stage each' if num_stages == 4 else 'fewer stages'!r}" in verdict(choices)
    if num_stages == 1:
        text = recommend(chosen.plan, predict_rivals(chosen.plan, 4))
        assert text.startswith("Use PPLL: 1.15 times the predicted speed of the best rival, backp")


def test_more_blocks_are_another_algorithm() -> None:
    """They may be fastest, but are not taken."""
    base = recipe(blocks=2, cuts=[4])
    costs = even_costs(base, forward_fixed_s=1e-3, backward_fixed_s=1.5e-3)
    choices = list_choices(base, costs, 4, FREE)
    more = choices[-1]
    assert (more.way, len(more.plan.blocks), more.keeps_blocks) == ("more blocks", 4, False)
    assert choose(choices).keeps_blocks
    assert "cuts are the algorithm" in verdict(choices)


def test_a_memory_limit_and_graphs_are_heeded() -> None:
    base = recipe(blocks=2, cuts="balanced")
    with pytest.raises(ModelError, match="memory"):
        list_choices(base, even_costs(base), 4, FREE, memory_limit_bytes=MIB)
    recorded = base.with_settings(["train.cuda_graphs=true"])
    with pytest.raises(RecipeError, match=r"cuda_graphs cannot record .* train\.replicas"):
        list_choices(recorded, even_costs(recorded), 4, FREE)


def test_more_blocks_heed_the_memory_limit() -> None:
    """The two layers that hold most take least, so without a limit they make one block."""
    base = recipe(blocks=2, cuts="balanced")
    sizes = [10, 10, 10, 100 * MIB, 100 * MIB]
    rows = zip([4, 4, 4, 1, 1], sizes, strict=True)
    layers = [layer(ms, parameter_bytes=num_bytes) for ms, num_bytes in rows]
    costs, limit = costs_of(layers, [0.0] * 5, base), 600 * MIB
    limited = list_choices(base, costs, 4, FREE, memory_limit_bytes=limit)[-1]
    free = list_choices(base, costs, 4, FREE)[-1]
    assert limited.way == free.way == "more blocks"
    assert limited.row()["memory_bytes"] <= limit < free.row()["memory_bytes"]


def test_replicas_are_chosen_for_a_recipe_whose_parameters_are_shared() -> None:
    """Where a choice has no replicas, nobody shares, and the recipe says so."""
    base = shared_by(2)
    costs = costs_by_block([12, 4], per_block(2), parameter_bytes=9 * MIB)
    choices = list_choices(base, costs, 4, FREE)
    for choice in choices:
        shares = choice.recipe.most_replicas > 1
        assert choice.recipe.runtime.sharding == ("fsdp" if shares else "none")
        assert Recipe.from_dict(choice.recipe.model_dump(mode="json")) == choice.recipe
    assert choose(choices).recipe.runtime.sharding == "fsdp"
    alike = list_choices(base.with_settings(["runtime.sharding=none"]), costs, 4, FREE)
    assert [c.recipe.train for c in choices] == [c.recipe.train for c in alike]
    assert choose(choices).row()["memory_bytes"] < choose(alike).row()["memory_bytes"]


# --- what training refuses -----------------------------------------------------------------------


def counted(base: Recipe, num_train: int, *, has_batch_norm: bool = False) -> Costs:
    """Of eight samples a batch."""
    known = {"num_train": num_train, "counted_for": counted_for(base)}
    costs = costs_by_block([8, 8], base)
    return costs.model_copy(update={**known, "has_batch_norm": has_batch_norm})


@pytest.mark.parametrize(
    ("num_train", "has_batch_norm", "settings", "most"),
    [
        (16, False, [], 8),
        (13, False, [], 4),
        (13, False, ["data.drop_last=true"], 8),
        (16, True, [], 4),
        (13, True, [], 2),
        (13, True, ["data.drop_last=true"], 4),
        (16, False, ["train.accumulate=2"], 4),
        (16, True, ["train.accumulate=2"], 2),
        (9, True, ["data.train_limit=16"], 4),
    ],
    ids=str,
)
def test_no_shard_is_chosen_that_training_refuses(
    num_train: int, has_batch_norm: bool, settings: list[str], most: int
) -> None:
    """Batches of 8, of which five shards are no smaller than four; of another limit the costs do
    not know the samples, only the network."""
    plain = per_block(2)
    costs = counted(plain, num_train, has_batch_norm=has_batch_norm)
    base = plain.with_settings(settings)
    costs = costs.model_copy(update={"recipe": measured_for(base), "message_size": 8})
    choices = list_choices(base, costs, 16, FREE)
    assert max(choice.recipe.most_replicas for choice in choices) == most
    assert ("do not say how many samples" in verdict(choices)) == ("train_limit" in str(settings))


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_what_is_chosen_can_be_trained(tmp_path: Path, sharding: str) -> None:
    """45 samples in batches of 10, and batch norm: of the last 5, two replicas get 2 each."""
    both = [
        "data.num_train=45",
        "data.validation=0",
        "train.replicas=2",
        f"runtime.sharding={sharding}",
    ]
    base = faults.recipe().with_settings(["data.batch_size=10", *both])
    costs = measure(base, repeats=1)
    assert costs.has_batch_norm
    slow = tuple(layer.model_copy(update={"forward_s": 1.0}) for layer in costs.layers)
    costs = costs.model_copy(update={"layers": slow})
    choices = list_choices(base, costs, 16, FREE)
    assert max(choice.recipe.most_replicas for choice in choices) == 2
    for choice in choices:
        ppll.Trainer(choice.recipe, out=tmp_path / "run").check()
    too_many = costs.model_copy(update={"num_train": None, "has_batch_norm": None})
    dead = list_choices(base, too_many, 16, FREE)[1].recipe
    with pytest.raises(DataError, match=r"one sample|too few"):
        ppll.Trainer(dead, out=tmp_path / "run")


def test_a_recipe_that_training_refuses_has_no_plan() -> None:
    base = per_block(2).with_settings(["train.replicas=8"])
    with pytest.raises(DataError, match=r"5 sample\(s\) .* too few for 8 replicas"):
        draw_plan(base, counted(base, 13), 2, FREE)
    alone = per_block(2)
    with pytest.raises(DataError, match="the last training batch of an epoch has one sample"):
        list_choices(alone, counted(alone, 9, has_batch_norm=True), 4, FREE)


def test_costs_that_were_measured_before_are_read() -> None:
    root = Path(__file__).parents[1] / "benchmarks"
    files = [*root.rglob("costs-*.json"), *root.rglob("*.costs.json")]
    assert len(files) >= 10
    for costs in map(Costs.read, files):
        base = Recipe()
        assert not costs.knows_samples_of(base)
        costs.check_messages(base.with_settings(["train.replicas=32"]))


def test_the_page_says_what_is_planned() -> None:
    """The table of docs/scale.md."""
    root = Path(__file__).parents[1]
    page = (root / "docs" / "scale.md").read_text(encoding="utf-8")
    base = load_recipe(str(root / "benchmarks" / "scale" / "slow-first.toml"), [])
    costs = Costs.read(root / "benchmarks" / "emulate" / "costs-cifar10-resnet32-dgl.json")
    network, memory = Link(0.125e9, 1e-4), Link(5e9, 5e-5)
    for num, link, name in [
        *((num, network, "1 Gb/s") for num in (4, 8)),
        *((num, memory, "5 GB/s") for num in (4, 5, 8, 12)),
    ]:
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {num}, {name}"))
        choices = list_choices(base, costs, num, link)
        for choice in choices:
            assert f"{choice.plan.samples_per_second:,.0f}" in line
        assert f"**{choose(choices).plan.samples_per_second:,.0f}**" in line
        shared = [list(c.plan.recipe.block_replicas) for c in choices if "single" in c.way]
        assert all(f"`{replicas}`".replace(" ", "") in line for replicas in shared)
