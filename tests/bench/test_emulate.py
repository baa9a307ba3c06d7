"""Emulated devices: what is slept, what is measured, and what is said of it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ppll.bench import emulate as module
from ppll.bench.emulate import SYSTEMS, Row, emulate, summary
from ppll.bench.emulated_devices import Devices
from ppll.bench.sleeping_block import BlockTimes
from ppll.config import Recipe
from ppll.errors import RecipeError
from ppll.planning.costs import Costs, ExitCosts, LayerCosts, measured_for
from ppll.planning.plan import Plan, draw_plan
from ppll.simulation.schedules import CHUNKS_A_RANK, predict
from ppll.simulation.simulate import Link

TINY = {"forward_s": 0.006, "backward_s": 0.012, "auxiliary_s": 0.001, "payload_bytes": 1 << 16}


def made_up_plan(block_s: float = 0.0, fixed_s: float = 0.0) -> Plan:
    """Two blocks of two layers each; layer i takes 1 + i ms forward and twice that backward, of
    which some seconds are the same for fewer samples."""
    recipe = Recipe.from_dict({"data": {"batch_size": 8}, "split": {"blocks": 2, "cuts": [2]}})
    layers = tuple(
        LayerCosts(
            name=f"layer{i}",
            forward_s=(1 + i) * 1e-3,
            backward_s=2 * (1 + i) * 1e-3,
            backward_first_s=(1 + i) * 1e-3,
            update_s=0.0,
            features_bytes=1000 * (1 + i),
            activation_bytes=1,
            parameter_bytes=100,
            forward_fixed_s=fixed_s,
            backward_fixed_s=fixed_s,
        )
        for i in range(4)
    )
    behind = ExitCosts(
        forward_s=1e-4, backward_s=2e-4, update_s=0, activation_bytes=1, parameter_bytes=1
    )
    costs = Costs(
        recipe=measured_for(recipe),
        device="made up",
        message_size=8,
        layers=layers,
        exits=(behind,) * 4,
        block_s=block_s,
        load_s=0.0,
    )
    return draw_plan(recipe, costs, 2, Link())


@pytest.mark.slow
@pytest.mark.processes
def test_every_system_is_measured_and_nearly_reaches_its_ideal() -> None:
    devices, seen = Devices.even(2, **TINY), []
    systems = [system for system in SYSTEMS if system != "more-blocks"]
    rows = emulate(devices, systems, num_batches=30, warm_up=3, microbatches=(4,), seen=seen.append)
    assert rows == seen
    assert [(row.system, row.microbatches) for row in rows] == [
        (system, 4 if system in CHUNKS_A_RANK else 1) for system in systems
    ]
    assert [row.stages for row in rows] == [1 if row.system == "sequential" else 2 for row in rows]
    for row in rows:
        assert row.ideal_seconds_per_batch <= 1.02 * row.seconds_per_batch, row
        assert 0 < row.efficiency <= 1.05, row


def test_even_devices_have_an_auxiliary_network_but_the_last() -> None:
    devices = Devices.even(3, **TINY)
    assert devices.num_devices == 3
    assert devices.blocks == (
        *[BlockTimes(0.006, pytest.approx(0.013), 1 << 16)] * 2,
        BlockTimes(0.006, 0.012, 1 << 16),
    )
    for num_chunks in (3, 6):
        work = devices.work(num_chunks)
        assert work.num_chunks == num_chunks
        assert sum(work.forward_s) == pytest.approx(3 * 0.006)
        assert sum(work.backward_s) == pytest.approx(3 * 0.012)
        assert work.features_bytes == (1 << 16,) * num_chunks


def test_devices_of_a_plan_are_its_blocks_slowed_down() -> None:
    devices = Devices.of_plan(made_up_plan(block_s=0.5e-3), 10.0)
    first, last = devices.blocks
    assert first.forward_s == pytest.approx(10 * 3e-3)  # layers 0 and 1
    assert first.learn_s == pytest.approx(10 * (1e-3 + 4e-3 + 0.3e-3 + 0.5e-3))
    assert last.forward_s == pytest.approx(10 * 7e-3)
    assert last.learn_s == pytest.approx(10 * (3e-3 + 8e-3 + 0.3e-3 + 0.5e-3))
    assert (first.payload_bytes, last.payload_bytes) == (2000, 4000)
    work = devices.work(4)
    assert work.forward_s == pytest.approx((0.01, 0.02, 0.03, 0.041))  # the loss is in the last
    assert work.backward_s == pytest.approx((0.01, 0.04, 0.06, 0.082))
    assert work.overhead_s == pytest.approx(10 * 0.25e-3)


def with_replicas(*replicas: int) -> Plan:
    base = made_up_plan()
    recipe = base.recipe.with_settings([f"train.replicas={list(replicas)}"])
    return draw_plan(recipe, base.costs, 2, Link())


def test_devices_of_blocks_with_replicas() -> None:
    devices = Devices.of_plan(with_replicas(1, 2), 10.0)
    assert (devices.num_devices, devices.replicas) == (3, (1, 2))
    whole = Devices.of_plan(made_up_plan(), 10.0)
    assert devices.blocks[0] == whole.blocks[0]
    assert devices.blocks[1].forward_s == pytest.approx(whole.blocks[1].forward_s / 2)
    assert devices.blocks[1].payload_bytes == whole.blocks[1].payload_bytes // 2
    assert devices.unshared == whole.blocks
    assert devices.stages("sequential") == (whole.blocks,)
    # Three blocks of the same layers, balanced: layers 0 and 1, then one each.
    assert [block.forward_s for block in devices.more_blocks] == pytest.approx([0.03, 0.03, 0.04])
    assert Devices.of_plan(with_replicas(1, 4), 1.0).more_blocks == ()


@pytest.mark.slow
@pytest.mark.processes
def test_blocks_with_replicas_stand_beside_as_many_blocks() -> None:
    devices = Devices.of_plan(with_replicas(1, 2), 4.0)
    systems = ("ppll", "more-blocks", "sequential", "ddp")
    rows = emulate(devices, systems, num_batches=20, warm_up=3)
    assert [(row.system, row.stages) for row in rows] == [
        *(("ppll", 3), ("more-blocks", 3), ("sequential", 1), ("ddp", 3))
    ]
    for row in rows:
        assert row.ideal_seconds_per_batch <= 1.02 * row.seconds_per_batch, row


def test_more_blocks_need_replicas() -> None:
    with pytest.raises(RecipeError, match="more-blocks is left out"):
        emulate(Devices.even(2, **TINY), ["more-blocks"])


@pytest.mark.parametrize("system", ["ddp", *CHUNKS_A_RANK])
def test_what_is_slept_is_what_the_ideal_counts(system: str) -> None:
    """Also where every action has an overhead, and something of it stays in every piece: all ranks'
    work is that of the prediction."""
    num, count = 2, 4 if system in CHUNKS_A_RANK else 1
    plan = made_up_plan(block_s=0.5e-3, fixed_s=0.3e-3)
    work = Devices.of_plan(plan, 1.0).work(num * CHUNKS_A_RANK.get(system, 1))
    ideal = predict(system, work, num, count)
    slept = module._emulated(system, work, num, count)
    busy_s = num * ideal.seconds_per_batch * (1 - ideal.idle_fraction)
    assert sum(slept.forward_s) + sum(slept.backward_s) == pytest.approx(busy_s)


def row(system: str, microbatches: int, seconds: float, ideal: float) -> Row:
    return Row(system, 1 if system == "sequential" else 4, microbatches, seconds, ideal)


OURS = row("ppll", 1, 0.030, 0.030)


def test_a_row_is_ready_for_json() -> None:
    assert row("1f1b", 8, 0.060, 0.045).to_dict() == {
        "system": "1f1b",
        "stages": 4,
        "microbatches": 8,
        "seconds_per_batch": 0.060,
        "ideal_seconds_per_batch": 0.045,
        "efficiency": 0.75,
    }


def test_the_summary_tells_the_algorithm_from_its_runtime() -> None:
    rivals = [row("1f1b", 8, 0.060, 0.045), row("zero-bubble", 16, 0.075, 0.033)]
    assert summary([row("sequential", 1, 0.120, 0.120), OURS, *rivals]) == (
        "PPLL is 2.00 times as fast as its best rival as measured (1f1b with 8 micro-batches): "
        "1.50 is the algorithm (their ideals), 1.33 its runtime on gloo. Beside the best ideal, "
        "zero-bubble with 16 micro-batches's without any runtime, PPLL as measured is 1.10 times "
        "as fast."
    )
    assert "best rival as measured (ddp): 1.00 is" in summary([OURS, row("ddp", 1, 0.040, 0.030)])


def test_the_summary_needs_somebody_to_compare() -> None:
    assert summary([OURS]) == ""
    assert summary([OURS, row("sequential", 1, 0.120, 0.120)]) == ""
    assert summary([row("1f1b", 8, 0.060, 0.045)]) == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"systems": ["ppll", "zero-buble"]}, "unknown system 'zero-buble'. Did you mean 'zero-b"),
        ({"num_batches": 0}, "cannot time 0 batches"),
        ({"warm_up": -1}, "after -1 others"),
        ({"capacity": 0}, "capacity 0"),
        ({"systems": ["1f1b"], "microbatches": [1]}, "ask for 2 or more"),
        ({"systems": ["zero-bubble"], "microbatches": [5]}, "found 5: ask for 4 or 6"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "run_chain", lambda *_: pytest.fail("a process was started"))
    with pytest.raises(RecipeError, match=message):
        emulate(Devices.even(2, **TINY), **{"systems": ["ppll"], **options})


@pytest.mark.parametrize("amount", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", TINY)
def test_times_that_cannot_be_are_refused(name: str, amount: float) -> None:
    with pytest.raises(RecipeError, match=f"{name} is {amount}: give a finite number"):
        Devices.even(2, **{**TINY, name: amount})


def test_a_slow_down_that_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match="slow_down is -1"):
        Devices.of_plan(made_up_plan(), -1.0)


def test_a_batch_of_several_messages_is_refused() -> None:
    """A block of a plan takes a message, a rival's chunk a batch."""
    plan = made_up_plan()
    parts = plan.recipe.with_settings(["train.accumulate=2"])
    costs = plan.costs.model_copy(update={"recipe": measured_for(parts), "message_size": 4})
    with pytest.raises(RecipeError, match=r"train\.accumulate = 2: .* set it to 1"):
        Devices.of_plan(draw_plan(parts, costs, 2, Link()), 1.0)
