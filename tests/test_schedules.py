"""The rivals' schedules, against closed forms and the lists of torch itself."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
from torch.distributed.pipelining import schedules as torch_schedules

from ppll.baselines import SYSTEMS, Layout
from ppll.errors import RecipeError
from ppll.simulation.actions import chunks_of_ranks, pipeline_actions
from ppll.simulation.pipeline_work import PipelineWork
from ppll.simulation.schedules import CHUNKS_A_RANK, Prediction, predict
from ppll.simulation.simulate import Link

PIPELINES = tuple(CHUNKS_A_RANK)
KINDS = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}
MIB = 2**20


def even(num_chunks: int, forward_s=1.0, backward_s=2.0, **options: Any) -> PipelineWork:
    """A network whose chunks are alike; seconds are those of all of it."""
    rows = ((s / num_chunks,) * num_chunks for s in (forward_s, backward_s, 0.0))
    return PipelineWork(*rows, features_bytes=(4.0,) * num_chunks, **options)


def drawn(schedule: str, num_ranks: int, num_chunks: int, num_microbatches: int) -> list[str]:
    lists = pipeline_actions(schedule, num_ranks, num_chunks, num_microbatches)
    chunks = num_chunks > num_ranks
    return [
        " ".join(f"{a.kind}{a.microbatch}" + f".{a.chunk}" * chunks for a in row) for row in lists
    ]


def test_gpipe_looks_so() -> None:
    assert drawn("gpipe", 2, 2, 3) == ["F0 F1 F2 B0 B1 B2"] * 2


def test_1f1b_looks_so() -> None:
    assert drawn("1f1b", 3, 3, 4) == [
        "F0 F1 F2 B0 F3 B1 B2 B3",
        "F0 F1 B0 F2 B1 F3 B2 B3",
        "F0 B0 F1 B1 F2 B2 F3 B3",
    ]


def test_zero_bubble_looks_so() -> None:
    assert drawn("zero-bubble", 3, 3, 4) == [
        "F0 F1 F2 I0 W0 F3 I1 W1 I2 W2 I3 W3",
        "F0 F1 I0 F2 I1 W0 F3 I2 W1 I3 W2 W3",
        "F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3",
    ]


def test_interleaved_looks_so() -> None:
    assert drawn("interleaved", 2, 4, 2) == [
        "F0.0 F1.0 F0.2 F1.2 B0.2 B1.2 B0.0 B1.0",
        "F0.1 F1.1 F0.3 B0.3 F1.3 B1.3 B0.1 B1.1",
    ]


def test_zero_bubble_v_looks_so() -> None:
    assert drawn("zero-bubble-v", 2, 4, 3) == [
        "F0.0 F1.0 F2.0 F0.3 I0.3 W0.3 F1.3 I1.3 W1.3 I0.0 W0.0 F2.3 I2.3 W2.3 I1.0 W1.0 I2.0 W2.0",
        "F0.1 F0.2 F1.1 F1.2 I0.2 W0.2 F2.1 I0.1 W0.1 F2.2 I1.2 W1.2 I1.1 I2.2 I2.1 W1.1 W2.2 W2.1",
    ]


@pytest.mark.parametrize("schedule", PIPELINES)
def test_chunks_lie_as_the_rival_lays_them(schedule: str) -> None:
    system = SYSTEMS[schedule]
    assert system.chunks_per_rank == CHUNKS_A_RANK[schedule]
    for num_ranks in (2, 3, 4):
        layout = Layout(system, num_ranks, num_microbatches=num_ranks, num_batches=1)
        dealt = chunks_of_ranks(schedule, num_ranks, layout.num_chunks)
        assert dealt == tuple(layout.chunks_of(rank) for rank in range(num_ranks))


def lists_of_torch(schedule: str, num_ranks: int, num_chunks: int, num_microbatches: int):
    """What torch's own class deals, asked without stages and processes."""
    classes = {
        "interleaved": torch_schedules.ScheduleInterleaved1F1B,
        "zero-bubble": torch_schedules.ScheduleInterleavedZeroBubble,
        "zero-bubble-v": torch_schedules.ScheduleZBVZeroBubble,
    }
    asked: Any = object.__new__(classes[schedule])
    asked.pp_group_size, asked.n_local_stages = num_ranks, num_chunks // num_ranks
    asked.num_stages, asked._n_microbatches = num_chunks, num_microbatches
    asked.number_of_rounds = max(1, num_microbatches // num_ranks)
    asked.microbatches_per_round = num_microbatches // asked.number_of_rounds
    for rank in range(num_ranks):
        row = asked._calculate_single_rank_operations(rank)
        yield tuple((KINDS[a[1].name], a[0], a[2]) for a in row if a)


@pytest.mark.parametrize(
    ("schedule", "at_least"), [("interleaved", 100), ("zero-bubble", 100), ("zero-bubble-v", 80)]
)
def test_lists_are_those_of_torch(schedule: str, at_least: int) -> None:
    num_compared = 0
    for num_ranks, num_local, num_microbatches in valid_counts(schedule):
        counts = num_ranks, num_ranks * num_local, num_microbatches
        assert pipeline_actions(schedule, *counts) == tuple(lists_of_torch(schedule, *counts))
        num_compared += 1
    assert num_compared >= at_least


def valid_counts(schedule: str) -> list[tuple[int, int, int]]:
    """Ranks, chunks a rank, micro-batches."""
    rules = {"gpipe": lambda p, m: True, "1f1b": lambda p, m: m >= p}
    rules["zero-bubble-v"] = rules["gpipe"]
    fits = rules.get(schedule, lambda p, m: m % max(1, m // p) == 0)
    local = [CHUNKS_A_RANK[schedule]] if schedule in rules else [1, 2, 3]
    counts = itertools.product(range(1, 6), local, range(1, 17))
    return [(p, v, m) for p, v, m in counts if fits(p, m)]


@pytest.mark.parametrize("schedule", PIPELINES)
def test_every_chunk_sees_every_microbatch_and_nobody_waits_for_ever(schedule: str) -> None:
    kinds = "FIW" if schedule.startswith("zero-bubble") else "FB"
    for num_ranks, num_local, num_microbatches in valid_counts(schedule):
        num_chunks = num_ranks * num_local
        lists = pipeline_actions(schedule, num_ranks, num_chunks, num_microbatches)
        done = Counter(tuple(action) for row in lists for action in row)
        assert done == Counter(
            (k, c, i) for k in kinds for c in range(num_chunks) for i in range(num_microbatches)
        )
        dealt = chunks_of_ranks(schedule, num_ranks, num_chunks)
        assert tuple(tuple(sorted({a.chunk for a in row})) for row in lists) == dealt
        predict(schedule, even(num_chunks), num_ranks, num_microbatches, Link(1e3, 1e-3))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("p", "m"), [(1, 1), (2, 2), (4, 8), (8, 64), (3, 5)])
def test_the_bubble_is_that_of_filling_and_draining(schedule: str, p: int, m: int) -> None:
    found = predict(schedule, even(p), p, m)
    assert found.seconds_per_batch == pytest.approx((m + p - 1) / (m * p) * 3.0)
    assert found.idle_fraction == pytest.approx((p - 1) / (m + p - 1))
    held = [m] * p if schedule == "gpipe" else [min(m, p - rank) for rank in range(p)]
    assert found.peak_microbatches_held == tuple(held)


@pytest.mark.parametrize("v", [1, 2, 4])
def test_interleaving_divides_the_bubble(v: int) -> None:
    p, m = 4, 16
    found = predict("interleaved", even(p * v), p, m)
    assert found.idle_fraction == pytest.approx((p - 1) / (v * m + p - 1))
    if v > 1:
        assert max(found.peak_microbatches_held) > p


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 4), (4, 16), (8, 32)])
@pytest.mark.parametrize("v", [1, 2])
def test_zero_bubble_has_less_of_it(p: int, m: int, v: int) -> None:
    """F + B - 2W of a bubble of F + B is left (Qi et al., table 1); equal halves leave a third."""
    work = even(p * v)
    halves, whole = (predict(s, work, p, m) for s in ("zero-bubble", "1f1b"))
    assert halves.idle_fraction < 0.5 * whole.idle_fraction
    if v == 1:
        bubble_s = halves.seconds_per_batch - 3.0 / p
        assert bubble_s == pytest.approx((p - 1) / (m * p) * 1.0)
        assert max(halves.peak_microbatches_held) <= p


@pytest.mark.parametrize(("m", "period_s"), [(4, 37.5), (8, 30.0), (16, 30.0)])
def test_a_v_has_no_bubble_when_it_is_full_and_its_parts_are_equal(m: int, period_s: float) -> None:
    """F = I = W on four ranks: whole from 2p - 1 = 7 micro-batches on (Qi et al., section 6)."""
    work = even(8, forward_s=40.0, backward_s=80.0)
    found = predict("zero-bubble-v", work, 4, m)
    assert found.seconds_per_batch == pytest.approx(period_s)
    assert max(found.peak_microbatches_held) <= 4


def test_the_middle_of_a_v_does_not_travel() -> None:
    """The last rank hands chunk p - 1 to itself, and the first has the loss beside the input."""
    free = PipelineWork((1.0,) * 4, (2.0,) * 4, (0.0,) * 4, (0.0, 9.0, 0.0, 9.0))
    assert predict("zero-bubble-v", free, 2, 4, Link(1.0)) == predict("zero-bubble-v", free, 2, 4)


SECONDS = st.floats(0, 4).map(lambda s: round(s, 2))


@st.composite
def asked(draw) -> tuple[str, PipelineWork, int, int]:
    schedule = draw(st.sampled_from(PIPELINES))
    num_ranks, num_local, num_microbatches = draw(st.sampled_from(valid_counts(schedule)))
    num_chunks = num_ranks * num_local
    rows = [draw(st.tuples(*[SECONDS] * num_chunks)) for _ in range(4)]
    work = PipelineWork(
        *rows,
        weight_share=draw(st.sampled_from([0.3, 0.5])),
        overhead_s=draw(st.sampled_from([0.0, 0.01])),
    )
    return schedule, work, num_ranks, num_microbatches


@hypothesis.settings(deadline=None, derandomize=True, max_examples=150)
@hypothesis.given(asked(), st.sampled_from([1.0, math.inf]), st.booleans())
def test_no_rank_is_faster_than_its_work(asked, bandwidth: float, overlaps: bool) -> None:
    schedule, work, num_ranks, num_microbatches = asked
    found = predict(schedule, work, num_ranks, num_microbatches, Link(bandwidth, 0.1, overlaps))
    rows = zip(work.forward_s, work.backward_s, work.update_s, strict=True)
    seconds = [sum(row) for row in rows]
    dealt = chunks_of_ranks(schedule, num_ranks, work.num_chunks)
    of_ranks = [sum(seconds[chunk] for chunk in chunks) for chunks in dealt]
    assert found.seconds_per_batch >= max(of_ranks) * (1 - 1e-9)
    assert 0 <= found.idle_fraction <= 1


@hypothesis.settings(deadline=None, derandomize=True, max_examples=150)
@hypothesis.given(asked(), st.booleans())
def test_a_worse_link_is_never_faster(asked, overlaps: bool) -> None:
    links = [Link(), Link(8.0), Link(8.0, 0.05), Link(8.0, 0.2), Link(2.0, 0.2), Link(1.0, 3.0)]
    found = [predict(*asked, replace(link, overlaps=overlaps)) for link in links]
    for better, worse in itertools.pairwise(found):
        assert worse.seconds_per_batch >= better.seconds_per_batch * (1 - 1e-9)


def test_steps_follow_without_a_barrier() -> None:
    """Ranks end zero-bubble's step one after another and begin the next one so."""
    found = predict("zero-bubble", even(4, forward_s=1.0, backward_s=2.0), 4, 64)
    first_rank_s = 3.0 / 4 + 3 * (1.0 / 4 / 64)
    assert found.seconds_per_batch == pytest.approx(first_rank_s)


def test_a_step_ends_with_the_update() -> None:
    for schedule, num_local in CHUNKS_A_RANK.items():
        plain = even(4 * num_local)
        work = replace(plain, update_s=(0.5 / num_local,) * plain.num_chunks)
        with_update, without = (predict(schedule, w, 4, 8).seconds_per_batch for w in (work, plain))
        assert with_update == pytest.approx(without + 0.5)


def test_overhead_makes_small_pieces_dear() -> None:
    work = even(4, overhead_s=0.01)
    few, many = (predict("gpipe", work, 4, m).seconds_per_batch for m in (16, 128))
    assert many > few
    assert few == pytest.approx((16 + 3) * (3.0 / 64 + 0.02))


def test_what_does_not_shrink_is_in_every_piece() -> None:
    fixed = {"forward_fixed_s": (0.05,) * 4, "backward_fixed_s": (0.1,) * 4}
    work = even(4, **fixed, parameter_bytes=(0.0,) * 4)
    piece_s = (0.05 + 0.2 / 16) + (0.1 + 0.4 / 16)
    assert predict("gpipe", work, 4, 16).seconds_per_batch == pytest.approx((16 + 3) * piece_s)
    assert predict("ddp", work, 4).seconds_per_batch == pytest.approx(4 * (0.15 + 0.6 / 4))
    assert predict("backprop", work).seconds_per_batch == pytest.approx(3.0)
    twice = predict("gpipe", work.scaled(2.0), 4, 16).seconds_per_batch
    assert twice == pytest.approx(2 * (16 + 3) * piece_s)
    assert work.merged(2).backward_fixed_s == pytest.approx((0.2, 0.2))


def test_neighbours_are_merged_where_a_rank_has_one_chunk() -> None:
    work = PipelineWork((1.0, 2.0, 3.0, 4.0), (2.0,) * 4, (0.0,) * 4, (1.0, 9.0, 1.0, 0.0))
    merged = PipelineWork((3.0, 7.0), (4.0, 4.0), (0.0, 0.0), (9.0, 0.0))
    assert work.merged(2) == merged
    assert predict("1f1b", work, 2, 4, Link(9.0)) == predict("1f1b", merged, 2, 4, Link(9.0))


def test_one_device_takes_the_sum() -> None:
    work = PipelineWork((1.0, 2.0), (2.0, 4.0), (0.5, 0.5), (8.0, 8.0))
    for schedule in ("backprop", "sequential"):
        assert predict(schedule, work) == Prediction(10.0, 0.0, (1.0,))


def test_ddp_reduces_what_is_ready_while_it_computes() -> None:
    """Four chunks of one bucket each: all but the first chunk's is hidden."""
    link, size = Link(25 * MIB), 25 * MIB
    work = even(4, forward_s=4.0, backward_s=16.0, parameter_bytes=(float(size),) * 4)
    ring_s = 2 * 3 / 4 * 1.0
    hidden = predict("ddp", replace(work, backward_s=(8.0,) * 4), 4, link=link)
    assert hidden.seconds_per_batch == pytest.approx(1.0 + 8.0 + ring_s)
    bound = predict("ddp", replace(work, backward_s=(4.0,) * 4), 4, link=link)
    assert bound.seconds_per_batch == pytest.approx(1.0 + 1.0 + 4 * ring_s)
    behind = predict("ddp", work, 4, link=replace(link, overlaps=False))
    assert behind.seconds_per_batch == pytest.approx(1.0 + 4.0 + 4 * ring_s)
    assert behind.idle_fraction == pytest.approx(6.0 / 11.0)
    assert predict("ddp", work, 1, link=link).seconds_per_batch == pytest.approx(20.0)


def test_ddp_gathers_small_gradients_and_pays_latency_once() -> None:
    work = even(8, parameter_bytes=(100.0,) * 8)
    found = predict("ddp", work, 2, link=Link(latency_s=0.25))
    assert found.seconds_per_batch == pytest.approx(1.5 + 2 * 0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("gpip", even(2), 2, 2), "unknown schedule 'gpip'. Did you mean 'gpipe'"),
        (("backprop", even(2), 2, 1), r"backprop cannot run on 2 rank\(s\).* give 1 rank and 1"),
        (("sequential", even(2), 1, 4), "4 micro-batches: give 1 rank and 1 micro-batch"),
        (("ddp", even(2), 0, 1), r"ddp cannot run on 0 rank\(s\).* give 1 rank or more"),
        (("ddp", even(2), 2, 1), "give parameter_bytes, a number for every chunk"),
        (("gpipe", even(2), 0, 1), "give 1 or more of each"),
        (("gpipe", even(2), 2, 0), "give 1 or more of each"),
        (("1f1b", even(5), 2, 4), r"5 chunk\(s\).* 2 rank\(s\): give a multiple of 2 chunks"),
        (("1f1b", even(4), 4, 3), r"3 micro-batch\(es\).* give at least 4 micro-batches"),
        (("interleaved", even(6), 4, 4), "give a multiple of 4 chunks"),
        (("interleaved", even(8), 4, 9), "in rounds of 4 or more, all alike: ask for 8 or 12"),
        (("zero-bubble", even(3), 3, 11), "in rounds of 3 or more, all alike: ask for 9 or 12"),
        (("zero-bubble-v", even(4), 4, 4), r"4 chunk\(s\).* 4 rank\(s\): give 8 chunks"),
        (("zero-bubble-v", even(9), 3, 4), r"9 chunk\(s\).* 3 rank\(s\): give 6 chunks"),
    ],
)
def test_what_cannot_be_is_refused(call: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        predict(*call)


def test_a_list_is_for_one_chunk_a_rank() -> None:
    with pytest.raises(RecipeError, match="merge the chunks of a rank into one"):
        pipeline_actions("gpipe", 2, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forward_s": (1.0,)}, "backward_s has 2 entries and forward_s has 1"),
        ({"update_s": (1.0, -1.0)}, "an entry of update_s is -1.0"),
        ({"features_bytes": (math.nan, 0.0)}, "an entry of features_bytes is nan"),
        ({"parameter_bytes": (1.0,)}, "parameter_bytes has 1 entries"),
        ({"overhead_s": -1.0}, "overhead_s is -1.0"),
        ({"weight_share": 1.1}, "weight_share is 1.1: give a share, 0 to 1"),
    ],
)
def test_work_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        replace(even(2), **change)
