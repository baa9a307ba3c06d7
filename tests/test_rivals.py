"""Rivals get what is best for them: as many devices, micro-batches and cuts as they can use."""

from __future__ import annotations

import math

import pytest

from ppll.config import Recipe
from ppll.errors import RecipeError
from ppll.planning.costs import Costs
from ppll.planning.plan import Plan, draw_plan
from ppll.planning.recommendation import recommend
from ppll.planning.rivals import Rival, end_to_end_cuts, pipeline_work, predict_rivals
from ppll.simulation.pipeline_work import PipelineWork
from ppll.simulation.schedules import CHUNKS_A_RANK, predict
from ppll.simulation.simulate import Link
from tests.test_plan import MIB, costs_of, even_costs, layer, recipe

LINK = Link(bandwidth_bytes_s=5e9, latency_s=5e-5)


def rivals_of(base: Recipe, costs: Costs, num_devices: int) -> tuple[Plan, dict[str, Rival]]:
    plan = draw_plan(base, costs, 2, LINK)
    return plan, {rival.system: rival for rival in predict_rivals(plan, num_devices)}


def test_more_devices_than_layers_leave_nobody_out() -> None:
    base = recipe(blocks=2, cuts=[2])
    _, few = rivals_of(base, even_costs(base, 4), 4)
    _, many = rivals_of(base, even_costs(base, 4), 6)
    assert few.keys() <= many.keys()
    assert many["ddp"].devices == 6
    assert many["ddp"].samples_per_second > few["ddp"].samples_per_second
    assert many["gpipe"].devices == 4
    assert many["interleaved"].devices == 2


def test_a_device_has_a_sample_at_least() -> None:
    base = recipe(blocks=2, cuts=[2])
    _, rivals = rivals_of(base, even_costs(base, 4), 100)
    assert rivals["ddp"].devices == base.data.batch_size == 8


def able_s(schedule: str, work: PipelineWork, num_ranks: int, microbatches: int) -> float:
    try:
        return predict(schedule, work, num_ranks, microbatches, LINK).seconds_per_batch
    except RecipeError:
        return math.inf


@pytest.mark.parametrize("num_ranks", [3, 5])
def test_no_number_of_microbatches_is_better(num_ranks: int) -> None:
    """Three and five ranks go in rounds, which powers of two seldom fill."""
    base = recipe(blocks=2, cuts=[2]).with_settings(["data.batch_size=60"])
    plan, rivals = rivals_of(base, even_costs(base, 20), num_ranks)
    for schedule, chunks in CHUNKS_A_RANK.items():
        work = pipeline_work(plan, num_ranks * chunks)
        allowed = [m for m in range(num_ranks, 61) if 60 % m == 0]
        seconds = [able_s(schedule, work, num_ranks, m) for m in allowed]
        assert 60 / rivals[schedule].samples_per_second == pytest.approx(min(seconds))


def test_no_rival_is_faster_than_its_loader() -> None:
    base = recipe(blocks=2, cuts=[2])
    costs = even_costs(base, 4).model_copy(update={"load_s": 100.0})
    _, rivals = rivals_of(base, costs, 4)
    rates = {system: rival.samples_per_second for system, rival in rivals.items()}
    assert rates.pop("ddp") == pytest.approx(4 * 8 / 100)  # each of four makes its share
    assert rates == pytest.approx(dict.fromkeys(rates, 8 / 100), rel=0.01)
    # They wait for it, as PPLL does.
    assert all(rival.idle > 0.999 for rival in rivals.values())


def test_what_does_not_shrink_is_in_every_piece_of_a_batch() -> None:
    """As it is in the shards of PPLL's replicas: where all of it is fixed, shares save nothing."""
    base = recipe(blocks=2, cuts=[2])
    half = {"forward_fixed_s": 0.5e-3, "backward_fixed_s": 1e-3, "backward_first_s": 2e-3}
    all_fixed = {"forward_fixed_s": 9.0, "backward_fixed_s": 9.0, "backward_first_s": 2e-3}
    rates = {}
    for share, fixed in ((0.5, half), (1.0, all_fixed)):
        costs = costs_of([layer(3, f"layer{i}", **fixed) for i in range(4)], [0.0] * 4, base)
        plan = draw_plan(base, costs, 2, Link())
        rivals = {rival.system: rival for rival in predict_rivals(plan, 4)}
        rates[share] = {name: 12e-3 / 8 * r.samples_per_second for name, r in rivals.items()}
    assert rates[0.5]["ddp"] == pytest.approx(1 / (0.5 + 0.5 / 4))
    assert rates[1.0]["ddp"] == pytest.approx(1)
    assert rates[1.0]["backprop"] == pytest.approx(1)
    # Two micro-batches of two devices take 4 + 2 half batches' time where nothing shrinks.
    assert all(rates[1.0][name] < 1.4 for name in CHUNKS_A_RANK)
    assert rates[0.5]["gpipe"] > rates[1.0]["gpipe"]


def test_a_batch_in_parts_is_whole_for_rivals() -> None:
    """What stays the same for a message is not in a batch as often as there are messages."""
    base = recipe(blocks=2, cuts=[2]).with_settings(["train.accumulate=2"])
    fixed = {"forward_fixed_s": 0.5e-3, "backward_fixed_s": 1e-3, "backward_first_s": 2e-3}
    costs = costs_of([layer(3, f"layer{i}", **fixed) for i in range(4)], [0.0] * 4, base)
    work = pipeline_work(draw_plan(base, costs, 2, LINK), 1)
    assert work.forward_s == pytest.approx((4 * 1.5e-3,))
    assert work.backward_s == pytest.approx((4 * 3e-3,))


def test_the_loss_counts_where_chunks_are_balanced() -> None:
    base = recipe(blocks=2, cuts=[2])
    layers = [layer(2, f"layer{i}", backward_first_s=4 / 3e3) for i in range(8)]
    costs = costs_of(layers, [0.5] * 7 + [4.0], base)
    assert end_to_end_cuts(costs, 2) == (5,)  # 10 and 6 + 4 ms


def test_on_links_that_are_too_slow_one_stage_is_advised() -> None:
    """Sequential local learning is no end-to-end training, and needs no links."""
    base = recipe(blocks=2, cuts=[2])
    layers = [layer(3, f"layer{i}", parameter_bytes=MIB) for i in range(4)]
    slow = Link(bandwidth_bytes_s=1e6)
    plan = draw_plan(base, costs_of(layers, [0.1] * 4, base), 2, slow)
    text = recommend(plan, predict_rivals(plan))
    assert text.startswith("Take one stage (--stages 1)")
    assert "0.001 GB/s" in text


def beside_one_stage(works_ms: list[float], link: Link) -> str:
    """What is recommended for two stages with two of these layers each, a block a layer."""
    base = recipe(blocks=4, cuts=[1, 2, 3])
    layers = [layer(ms, f"layer{i}", parameter_bytes=100 * MIB) for i, ms in enumerate(works_ms)]
    plan = draw_plan(base, costs_of(layers, [0.1] * 4, base), 2, link)
    rivals = [each for each in predict_rivals(plan) if each.system in ("ppll", "sequential")]
    return recommend(plan, rivals)


def beside_backprop(bandwidth: float) -> str:
    """What is recommended for four stages that would rather be one device without exits."""
    base = recipe(blocks=4, cuts=[2, 4, 6])
    layers = [
        layer(3, f"layer{i}", backward_first_s=2e-3, parameter_bytes=200 * MIB) for i in range(8)
    ]
    link = Link(bandwidth_bytes_s=bandwidth)
    plan = draw_plan(base, costs_of(layers, [3.0] * 7 + [0.1], base), 4, link)
    return recommend(plan, predict_rivals(plan))


def test_slow_links_do_not_speak_against_a_rival_on_one_device() -> None:
    text = beside_backprop(5e7)
    assert text.startswith("PPLL and backprop on one device are predicted equally fast")
    assert text.endswith("Take backprop on one device, which needs no links, where it fits.")
    text = beside_backprop(3e7)
    assert text.startswith("Use backprop on one device: 1.5")
    assert "links" not in text


def test_several_stages_that_are_a_little_faster_are_not_called_slower() -> None:
    text = beside_one_stage([0.5, 0.5, 20, 20], Link())
    assert text.startswith("One stage (--stages 1) and several are predicted about equally fast")
    assert "ratio 1.03" in text
    assert "stage 1 has 97% of the work" in text
    assert "GB/s" not in text


def test_a_loader_that_all_wait_for_is_named() -> None:
    base = recipe(blocks=4, cuts=[1, 2, 3])
    layers = [layer(6, f"layer{i}", parameter_bytes=100 * MIB) for i in range(4)]
    costs = costs_of(layers, [0.1] * 4, base).model_copy(update={"load_s": 0.05})
    plan = draw_plan(base, costs, 2, LINK)
    rivals = [each for each in predict_rivals(plan) if each.system in ("ppll", "sequential")]
    text = recommend(plan, rivals)
    assert text.startswith("One stage (--stages 1) and several are predicted about equally fast")
    assert "the loader takes 50.0 ms a message" in text


def beside_one_process(parameter_bytes: int, fixed: float) -> str:
    """What is recommended for two replicas of one stage, where a share of the work is fixed."""
    base = recipe(blocks=2, cuts=[1]).with_settings(["train.replicas=2"])
    costs = {"forward_fixed_s": fixed * 2e-3, "backward_fixed_s": fixed * 4e-3}
    layers = [layer(6, f"layer{i}", parameter_bytes=parameter_bytes, **costs) for i in range(2)]
    whole = costs_of(layers, [0.1] * 2, base).model_copy(update={"message_size": 8})
    plan = draw_plan(base, whole, 1, Link(bandwidth_bytes_s=1e8))
    rivals = [each for each in predict_rivals(plan) if each.system in ("ppll", "sequential")]
    return recommend(plan, rivals)


def test_beside_replicas_of_one_stage_one_process_is_advised() -> None:
    """One stage is what they are."""
    alone = "ne process (--stages 1 --set train.replicas=1)"
    text = beside_one_process(MIB, 0.0)
    assert text.startswith(f"Take o{alone}")
    assert "links (0.1 GB/s, 0 us) take more than they give" in text
    text = beside_one_process(10, 0.95)
    assert text.startswith(f"O{alone} and several are predicted about equally fast")
    assert "a replica of stage 0 takes 9" in text
    assert "split.cuts" not in text


def test_links_are_named_where_they_take_what_even_stages_give() -> None:
    text = beside_one_stage([6, 6, 6, 6], Link(bandwidth_bytes_s=8e7))
    assert text.startswith("One stage (--stages 1) and several are predicted about equally fast")
    assert "the links (0.08 GB/s, 0 us) take" in text
