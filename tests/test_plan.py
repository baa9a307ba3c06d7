"""Plans from costs that are made up, so that everything can be worked out by hand."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ppll import limits
from ppll.cli.plan import _note_cores
from ppll.config import Recipe
from ppll.environment import describe_processor
from ppll.errors import Interrupted, ModelError, RecipeError
from ppll.interrupts import Interrupts
from ppll.planning.costs import Costs, ExitCosts, LayerCosts, measured_for
from ppll.planning.plan import balanced_cuts, draw_plan
from ppll.planning.recommendation import recommend
from ppll.planning.rivals import predict_rivals
from ppll.simulation.simulate import Link

MIB = 2**20
FREE = Link()


def layer(ms: float, name: str = "layer", **changes: Any) -> LayerCosts:
    """One third forward, two thirds backward; a block's first layer saves a quarter of that."""
    values: dict[str, Any] = {
        "name": name,
        "forward_s": ms / 3e3,
        "backward_s": 2 * ms / 3e3,
        "backward_first_s": 1.5 * ms / 3e3,
        "update_s": 0.0,
        "features_bytes": MIB,
        "activation_bytes": 3 * MIB,
        "parameter_bytes": 10,
    }
    return LayerCosts(**{**values, **changes})


def exits(ms: float) -> ExitCosts:
    return ExitCosts(
        forward_s=ms / 2e3, backward_s=ms / 2e3, update_s=0, activation_bytes=MIB, parameter_bytes=5
    )


def recipe(**split: Any) -> Recipe:
    return Recipe.from_dict(
        {"data": {"batch_size": 8}, "split": split, "optimizer": {"name": "adamw"}}
    )


def costs_of(layers: list[LayerCosts], auxiliary_ms: list[float], base: Recipe) -> Costs:
    return Costs(
        recipe=measured_for(base),
        device="made up",
        message_size=base.message_size,
        layers=tuple(layers),
        exits=tuple(exits(ms) for ms in auxiliary_ms),
        block_s=0.0,
        load_s=0.0,
    )


def even_costs(base: Recipe, num_layers: int = 8, **changes: Any) -> Costs:
    layers = [layer(3, f"layer{i}", **changes) for i in range(num_layers)]
    return costs_of(layers, [0.5] * (num_layers - 1) + [0.1], base)


def test_blocks_and_stages_by_hand() -> None:
    base = recipe(blocks=4, cuts=[2, 4, 6])
    plan = draw_plan(base, even_costs(base), 4, FREE)
    first, *_, last = plan.blocks
    assert (first.first, first.last) == ("layer0", "layer1")
    assert first.forward_s == pytest.approx(2e-3)
    assert first.learn_s == pytest.approx(1.5e-3 + 2e-3 + 0.5e-3)
    assert last.learn_s == pytest.approx(1.5e-3 + 2e-3 + 0.1e-3)
    assert first.auxiliary_share == pytest.approx(0.5 / 6)
    assert plan.seconds_per_message == pytest.approx(6e-3)
    assert plan.one_stage_s == pytest.approx(3 * 6e-3 + 5.6e-3)
    assert plan.speedup == pytest.approx(plan.bound) == pytest.approx(23.6 / 6)
    assert plan.samples_per_second == pytest.approx(8 / 6e-3)
    # AdamW: parameters, gradients and two states; activations; four slots of what comes in.
    assert plan.stages[0].memory_bytes == 4 * 25 + 7 * MIB
    assert plan.stages[1].memory_bytes == 4 * 25 + 7 * MIB + 4 * MIB
    assert plan.stages[3].idle == pytest.approx(0.4 / 6, abs=0.01)
    averaged = draw_plan(base.with_settings(["train.ema=0.99"]), even_costs(base), 4, FREE)
    assert averaged.stages[0].memory_bytes == 5 * 25 + 7 * MIB


def test_blocks_at_the_same_time_hold_all_their_activations() -> None:
    base = recipe(blocks=4, cuts=[2, 4, 6]).with_settings(["train.cuda_graphs=true"])
    together = base.with_settings(["runtime.concurrent_blocks=true"])
    one, all_of_them = (draw_plan(r, even_costs(base), 2, FREE) for r in (base, together))
    added = all_of_them.stages[0].memory_bytes - one.stages[0].memory_bytes
    assert added == one.blocks[1].activation_bytes == 7 * MIB
    text = recommend(all_of_them, predict_rivals(all_of_them))
    assert "blocks one after the other, which is longer" in text
    alone = draw_plan(together, even_costs(base), 4, FREE)
    assert "concurrent_blocks" not in recommend(alone, predict_rivals(alone))


@pytest.mark.parametrize("threads", [2, 3])
def test_a_plan_says_when_this_machine_has_too_few_processors(
    threads: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limits, "num_cores", lambda: 4)
    base = recipe(blocks=2, cuts=[4]).with_settings([f"train.threads_per_stage={threads}"])
    costs = even_costs(base).model_copy(update={"device": describe_processor()})
    _note_cores(Console(), draw_plan(base, costs, 2, FREE))
    assert ("Predicted for 6 processors" in capsys.readouterr().out) == (threads == 3)


def test_what_goes_beside_features_takes_its_time_on_a_link() -> None:
    """A block hands on what it got of the output before, or of the network's input."""
    base = recipe(blocks=3, cuts=[2, 4])
    sent = {"sent_bytes": 5 * MIB, "carried_bytes": 3 * MIB}
    costs = even_costs(base, **sent).model_copy(update={"carried_bytes": 7 * MIB})
    plan = draw_plan(base, costs, 3, Link(bandwidth_bytes_s=MIB))
    assert [block.features_bytes / MIB for block in plan.blocks[:2]] == [5 + 7, 5 + 3]
    assert plan.seconds_per_message == pytest.approx(12, rel=0.01)
    assert plan.blocks[1].input_bytes == 5 * MIB
    half = costs.for_samples(4)
    assert (half.layers[0].leaving_bytes, half.carried_bytes) == (2.5 * MIB, 3.5 * MIB)


def test_fewer_stages_run_several_blocks() -> None:
    base = recipe(blocks=4, cuts=[2, 4, 6])
    plan = draw_plan(base, even_costs(base), 2, FREE)
    assert [list(stage.blocks) for stage in plan.stages] == [[0, 1], [2, 3]]
    assert plan.seconds_per_message == pytest.approx(12e-3)


def test_balanced_cuts_count_the_auxiliary_network_at_the_cut() -> None:
    """Evenly cut, the auxiliary network of 9 ms would make the first block slowest."""
    base = recipe(blocks=2, cuts="balanced")
    costs = costs_of([layer(3, f"layer{i}") for i in range(4)], [0.5, 9, 0.5, 0.1], base)
    assert balanced_cuts(base, costs, FREE) in ((1,), (3,))
    plan = draw_plan(base, costs, 2, FREE)
    assert plan.recipe.split.cuts == balanced_cuts(base, costs, FREE)


def test_balanced_cuts_count_the_transfer() -> None:
    base = recipe(blocks=2, cuts="balanced")
    layers = [layer(3, f"layer{i}") for i in range(4)]
    layers[1] = layer(3, "layer1", features_bytes=100 * MIB)
    costs = costs_of(layers, [0.5, 0.5, 0.5, 0.1], base)
    assert balanced_cuts(base, costs, FREE) == (2,)
    assert balanced_cuts(base, costs, Link(bandwidth_bytes_s=1e9)) != (2,)


def test_no_other_cuts_are_faster_on_a_link() -> None:
    """A block cannot take a message while it still sends the one before, so layer 1's 8 ms, which
    begin when its features are there, take longer than learning."""
    base = recipe(blocks=3, cuts="balanced")
    sizes = [2, 8, 3, 1, 4, 1]
    layers = [layer(3, f"layer{i}", features_bytes=size * MIB) for i, size in enumerate(sizes)]
    costs = costs_of(layers, [0.5] * 5 + [0.1], base)
    link = Link(bandwidth_bytes_s=1e9)
    every = itertools.combinations(range(1, 6), 2)
    others = [base.with_settings([f"split.cuts={list(cuts)}"]) for cuts in every]
    fastest_s = min(draw_plan(other, costs, 3, link).seconds_per_message for other in others)
    plan = draw_plan(base, costs, 3, link)
    assert plan.seconds_per_message == pytest.approx(fastest_s)


def test_balanced_cuts_heed_the_memory() -> None:
    base = recipe(blocks=2, cuts="balanced")
    costs = even_costs(base, num_layers=4)
    with pytest.raises(ModelError, match="memory"):
        balanced_cuts(base, costs, FREE, memory_limit_bytes=MIB)


def test_accumulation_updates_less_often() -> None:
    base = recipe(blocks=2, cuts=[4])
    parted = base.with_settings(["train.accumulate=4"])
    one, four = (draw_plan(r, even_costs(r, update_s=1e-3), 2, FREE) for r in (base, parted))
    assert one.blocks[0].learn_s - four.blocks[0].learn_s == pytest.approx(4 * 0.75e-3)


def test_rivals_stand_beside_it() -> None:
    base = recipe(blocks=4, cuts=[2, 4, 6])
    plan = draw_plan(base, even_costs(base, 16), 4, FREE)
    rivals = {rival.system: rival for rival in predict_rivals(plan)}
    assert {"ppll", "sequential", "backprop", "ddp", "gpipe", "1f1b", "zero-bubble"} <= set(rivals)
    assert rivals["ppll"].samples_per_second == plan.samples_per_second
    assert rivals["backprop"].devices == rivals["sequential"].devices == 1
    # Eight samples make no more than eight micro-batches: (p - 1) / (m + p - 1) of bubble.
    assert rivals["gpipe"].microbatches == 8
    assert rivals["gpipe"].idle == pytest.approx(3 / 11, abs=0.02)
    assert rivals["1f1b"].memory_bytes < rivals["gpipe"].memory_bytes
    assert rivals["sequential"].memory_bytes < rivals["backprop"].memory_bytes


def test_a_signal_leaves_no_rival_out(monkeypatch: pytest.MonkeyPatch) -> None:
    base = recipe(blocks=2, cuts=[4])
    plan = draw_plan(base, even_costs(base), 2, FREE)
    tried: list[str] = []

    def interrupted(system: str, *rest: object) -> None:
        tried.append(system)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("ppll.planning.rivals.predict", interrupted)
    with pytest.raises(Interrupted), Interrupts(most=0):
        predict_rivals(plan)
    assert len(tried) == 1


def test_time_is_said_to_be_without_shares() -> None:
    base = recipe(blocks=2, cuts=[4]).with_settings(["train.replicas=2"])
    both = [base, base.with_settings(["runtime.sharding=fsdp"])]
    plans = [draw_plan(each, even_costs(base), 2, FREE) for each in both]
    without, with_shares = (recommend(plan, predict_rivals(plan)) for plan in plans)
    assert with_shares.startswith(without)
    assert "longer than predicted" in with_shares.removeprefix(without)


def test_the_recommendation_may_be_a_rival() -> None:
    base = recipe(blocks=2, cuts=[1])
    uneven = costs_of([layer(1, "a"), *(layer(9, f"b{i}") for i in range(3))], [2, 2, 2, 0.1], base)
    plan = draw_plan(base, uneven, 2, FREE)
    text = recommend(plan, predict_rivals(plan))
    assert text.startswith("Use DDP")


@pytest.mark.parametrize(("spread", "is_noisy"), [(0.1, False), (0.5, True)])
def test_noisy_costs_decide_nothing(spread: float, is_noisy: bool) -> None:
    base = recipe(blocks=2, cuts=[4])
    costs = even_costs(base)
    layers = tuple(layer.model_copy(update={"spread": spread}) for layer in costs.layers)
    plan = draw_plan(base, costs.model_copy(update={"layers": layers}), 2, FREE)
    text = recommend(plan, predict_rivals(plan))
    assert text.startswith("These costs are too noisy to go by") == is_noisy
    assert "PPLL" in text  # It still tells what they say.


def test_a_slow_link_speaks_for_local_learning() -> None:
    base = recipe(blocks=4, cuts=[2, 4, 6])
    costs = even_costs(base, parameter_bytes=4 * MIB)
    plan = draw_plan(base, costs, 4, Link(bandwidth_bytes_s=1e9, latency_s=1e-3))
    assert recommend(plan, predict_rivals(plan)).startswith("Use PPLL")


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("model.name=resnet110", "model.name"),
        ("data.batch_size=9", "data.batch_size"),
        ("method.name=greedy", "method.name"),
        ("train.precision=bf16", "train.precision"),
        ("train.tf32=true", "train.tf32"),
        ("train.activation_checkpointing=true", "train.activation_checkpointing"),
    ],
)
def test_costs_of_another_recipe_are_refused(setting: str, key: str) -> None:
    base = recipe(blocks=2, cuts=[4])
    with pytest.raises(RecipeError, match=f"measured for {key}"):
        draw_plan(base.with_settings([setting]), even_costs(base), 2, FREE)


def test_costs_from_before_a_key_was_there_are_those_of_its_default() -> None:
    base = recipe(blocks=2, cuts=[4])
    costs = even_costs(base)
    data = {key: value for key, value in costs.recipe["data"].items() if key != "cutout"}
    old = costs.model_copy(update={"recipe": {**costs.recipe, "data": data}})
    assert draw_plan(base, old, 2, FREE).stages == draw_plan(base, costs, 2, FREE).stages
    with pytest.raises(RecipeError, match=r"measured for data\.cutout = 0, .* has 3"):
        draw_plan(base.with_settings(["data.cutout=3"]), old, 2, FREE)


def test_costs_are_of_the_options_of_ones_own_optimizer() -> None:
    plain = recipe(blocks=2, cuts=[4]).with_settings(["optimizer.name=torch.optim:RAdam"])
    other = plain.with_settings(["optimizer.options.foreach=true"])
    costs = even_costs(plain)
    with pytest.raises(RecipeError, match=r"measured for optimizer\.options = \{\}, .*'foreach'"):
        draw_plan(other, costs, 2, FREE)
    keys = {k: value for k, value in costs.recipe["optimizer"].items() if k != "options"}
    old = costs.model_copy(update={"recipe": {**costs.recipe, "optimizer": keys}})
    assert draw_plan(plain, old, 2, FREE).stages == draw_plan(plain, costs, 2, FREE).stages


def test_what_changes_no_time_may_differ() -> None:
    base = recipe(blocks=2, cuts=[4])
    settings = ["optimizer.lr=3", "train.seed=9", "train.epochs=1", "data.eval_batch_size=3"]
    weights = ["model.weights=trained.safetensors", 'model.fresh=["head"]']
    other = base.with_settings([*settings, *weights])
    assert draw_plan(other, even_costs(base), 2, FREE)
    costs = even_costs(base)
    data = {**costs.recipe["data"], "eval_batch_size": 5}
    model = {**costs.recipe["model"], "fresh": ["head"]}
    older = costs.model_copy(update={"recipe": {**costs.recipe, "data": data, "model": model}})
    assert draw_plan(other, older, 2, FREE)


def test_more_stages_than_blocks_are_refused() -> None:
    base = recipe(blocks=2, cuts=[4])
    with pytest.raises(RecipeError, match="ask for 1 to 2"):
        draw_plan(base, even_costs(base), 3, FREE)


def test_costs_are_read_as_they_were_written(tmp_path: Path) -> None:
    costs = even_costs(recipe(blocks=2))
    costs.write(tmp_path / "costs.json")
    assert Costs.read(tmp_path / "costs.json") == costs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["layers"][0].update(forward_s=-1), "layers.0.forward_s"),
        (lambda tree: tree["layers"][0].pop("backward_s"), "layers.0.backward_s"),
        (lambda tree: tree["exits"].pop(), "8 layers have 7 exits"),
        (lambda tree: tree.update(layers=[]), "0 layers"),
        (lambda tree: tree.update(load_s="fast"), "load_s"),
        (lambda tree: [x.update(forward_s=0) for x in tree["layers"]], "no layer takes any time"),
    ],
)
def test_costs_that_cannot_be_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    tree = json.loads(even_costs(recipe(blocks=2)).model_dump_json())
    change(tree)
    (tmp_path / "costs.json").write_text(json.dumps(tree))
    with pytest.raises(RecipeError, match=message):
        Costs.read(tmp_path / "costs.json")
