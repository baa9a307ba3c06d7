"""What a timeline says, what it advises, and which stretch of it is drawn."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ppll.sections import CheckpointConfig, RuntimeConfig
from ppll.tracing.advice import advise, working_cores
from ppll.tracing.files import RankTrace, Span, Start, Sum
from ppll.tracing.lanes import Bar, draw_lanes
from ppll.tracing.summary import BlockTimes, summarize
from tests.traces import made_up_start, made_up_trace, span, totals_trace

BUSY = {"forward": 3.0, "learn": 6.0, "receive wait": 1.0}


def test_shares_are_of_the_time_since_the_first_batch() -> None:
    seconds = {"start": 90.0, "forward": 2.0, "learn": 4.0, "receive wait": 3.0, "send wait": 1.0}
    (stage,) = summarize(made_up_start(seconds, cpu_s=3.0)).stages
    assert stage.seconds == 10
    assert (stage.busy, stage.receive_wait, stage.send_wait) == pytest.approx((0.6, 0.3, 0.1))
    assert (stage.blocks[0].forward_s, stage.blocks[0].learn_s) == (0.2, 0.4)
    assert stage.work_s == pytest.approx(0.6)
    assert (stage.inbox_fill, stage.cpu) == (1.5, 0.5)


def test_shares_of_replicas_add_up() -> None:
    seconds = {"forward": 2.0, "learn": 4.0, "receive wait": 1.0, "average wait": 3.0}
    (stage,) = summarize(made_up_start(seconds, cpu_s=3.0)).stages
    assert (stage.busy, stage.receive_wait, stage.average_wait) == pytest.approx((0.6, 0.1, 0.3))
    assert stage.to_dict()["average_wait"] == stage.average_wait


def cut_by_waits(
    forwards: int, learns: int, waits: int, evaluations: int = 0, tested: int = 0
) -> BlockTimes:
    """A block of ten messages, in so many pieces: 0.2 s forward and 0.5 s of learning in all."""
    parts = {"forward": (forwards, 0.2), "learn": (learns, 0.5), "average wait": (waits, 1.0)}
    parts |= {"evaluate": (evaluations, 0.1)} if evaluations else {}
    parts |= {"evaluation forward": (tested, 5.0)} if tested else {}
    sums = [Sum(name=name, block=0, num=n, seconds=s) for name, (n, s) in parts.items()]
    trace = totals_trace(0, (0,), {}, cpu_s=1.0)
    assert trace.totals is not None
    trace = replace(trace, totals=trace.totals.model_copy(update={"sums": tuple(sums)}))
    return summarize(Start((trace,))).stages[0].blocks[0]


def test_times_are_a_message_s_however_often_replicas_wait_within_it() -> None:
    """Where they share parameters, a forward waits once a layer, and a learning step twice."""
    each = pytest.approx((0.02, 0.05))
    for pieces in ((10, 20, 10), (10 + 30, 10 + 60, 30 + 60)):
        block = cut_by_waits(*pieces)
        assert (block.forward_s, block.learn_s) == each
    for waits in (0, 15):
        pieces = 10 + 30, 10 + 60, 30 + 60 + waits
        tested = cut_by_waits(*pieces, evaluations=5, tested=5 + waits)
        assert (tested.forward_s, tested.learn_s) == each


def test_traces_that_do_not_tell_forwards_of_evaluations_apart_stay_readable() -> None:
    tested = cut_by_waits(10 + 30 + 10, 10 + 60, 30 + 60, evaluations=10)
    assert (tested.forward_s, tested.learn_s) == pytest.approx((0.01, 0.05))


def test_a_killed_rank_is_known_by_its_spans() -> None:
    trace = made_up_trace(
        0,
        span("start", 0, 5),
        span("forward", 5, 6, block=0),
        span("receive wait", 6, 9),
        span("learn", 9, 10, block=0),
    )
    (stage,) = summarize(Start((trace,))).stages
    assert (stage.busy, stage.receive_wait) == (0.4, 0.6)
    assert stage.inbox_fill is None
    assert stage.cpu is None


def test_nothing_recorded_is_no_time() -> None:
    (stage,) = summarize(Start((made_up_trace(0),))).stages
    assert (stage.busy, stage.work_s) == (0, 0)


def advice(*stages: dict[str, float], num_cores: int | None = 8, **more: float) -> list[str]:
    return advise(summarize(made_up_start(*stages, **{"cpu_s": 9.0, **more})), num_cores)


def test_even_stages_need_no_advice() -> None:
    assert advice(BUSY, BUSY) == []


def test_a_slow_loader_is_named() -> None:
    hungry = {**BUSY, "receive wait": 9.0}
    (text,) = advice(hungry, hungry)
    assert text.startswith("Stage 0 waits for data 50% of the time")
    assert "runtime.capacity, now 4" in text
    assert "GPU" not in text
    (text,) = advice(hungry, hungry, num_cores=None)
    assert text.endswith(
        "If its GPU is busy all the time, it waits for that: then nothing is amiss."
    )


def test_batches_that_no_thread_makes_ahead_are_named() -> None:
    """They are work of the first stage, and its inbox holds no others."""
    making = {**BUSY, "make batch": 4.0}
    (first,) = summarize(made_up_start(making, cpu_s=9.0)).stages
    assert (first.make_batches, first.work_s) == pytest.approx((4 / 14, 0.9 + 0.4))
    assert first.inbox_fill is None
    (text,) = advice(making, BUSY)
    assert text.startswith("Stage 0 makes its batches itself, 29% of the time")
    assert 'runtime.data = "host"' in text
    assert "runtime.capacity" not in text
    assert "GPU" not in text
    assert "If its GPU is busy" in advice(making, BUSY, num_cores=None)[0]
    assert "itself" not in " ".join(advice({**making, "send wait": 4.0}, BUSY))


def test_more_stages_than_processors_are_named() -> None:
    (text,) = advice(BUSY, BUSY, num_cores=1, cpu_s=4.5)
    assert text.startswith("2 stages share 1 processors: one had a processor only 50%")
    assert "--stages 1" in text


def test_a_machine_that_does_other_things_is_named() -> None:
    (text,) = advice(BUSY, BUSY, cpu_s=4.5)
    assert text.startswith("A stage had a processor only 50% of the time")
    assert advice(BUSY, BUSY, num_cores=None, cpu_s=4.5) == []


def crowded(num_cores: int, threads: int, num_stages: int = 2, **more: float) -> list[str]:
    """Advice on stages of so many threads, which had a processor half of the time."""
    start = made_up_start(*[BUSY] * num_stages, **{"cpu_s": 4.5, **more})
    return advise(summarize(start), num_cores, threads=threads)


def test_threads_need_processors_too() -> None:
    (text,) = crowded(4, 3)
    assert text.startswith("2 stages of 3 threads each share 4 processors")
    assert "--stages 1 or fewer" in text
    (text,) = crowded(2, 4, num_stages=1)
    assert text.startswith("4 threads of one stage share 2 processors")
    assert "Take fewer train.threads_per_stage" in text
    start = Start((totals_trace(0, (0, 1, 2), {"learn": 5.0}, cpu_s=15.0),))
    assert "--stages 2 blocks" in advise(summarize(start), 4, threads=2)[0]
    assert advise(summarize(start), 2, threads=2) == []


def on_hosts(num_cores: int, *clocks: str, cpu_s: float = 4.5) -> list[str]:
    start = made_up_start(*[BUSY] * len(clocks), cpu_s=cpu_s)
    pairs = zip(start.ranks, clocks, strict=True)
    return advise(summarize(Start(tuple(replace(r, clock=c) for r, c in pairs))), num_cores)


def test_processors_are_those_of_every_host() -> None:
    (text,) = on_hosts(2, "a", "a", "b", "b")
    assert text.startswith("A stage had a processor only 50% of the time")
    (text,) = on_hosts(2, "a", "a", "a", "b")
    assert text.startswith("3 processes on one host share 2 processors")
    assert "--nproc-per-node" in text


def test_processors_count_where_they_do_the_work() -> None:
    auto, mixed = RuntimeConfig(), RuntimeConfig(stages=2, devices=("cpu", "cuda:0"))
    on_cpus = RuntimeConfig(devices="cpu"), RuntimeConfig(stages=2, devices=("cpu", "cpu"))
    assert working_cores({"num_cores": 4, "gpus": []}, auto) == 4
    assert working_cores({"num_cores": "many"}, auto) is None
    with_gpu = {"num_cores": 4, "gpus": ["one"]}
    assert [working_cores(with_gpu, runtime) for runtime in on_cpus] == [4, 4]
    assert [working_cores(with_gpu, runtime) for runtime in (auto, mixed)] == [None, None]


def test_what_another_stage_waits_for_is_no_data() -> None:
    hungry = made_up_start({}, {**BUSY, "receive wait": 9.0}, cpu_s=9.0)
    assert advise(summarize(Start(hungry.ranks[1:]))) == []


def test_a_slow_stage_of_one_block_asks_for_another_cut() -> None:
    slow = {"forward": 3.0, "learn": 12.0}
    fast = {"forward": 1.0, "learn": 2.0, "send wait": 12.0}
    (text,) = advice(fast, slow)
    assert text.startswith("Stage 1 takes 1500.0 ms a message, all stages 900.0 ms on average")
    assert "split.cuts=balanced" in text


def placed(
    *stages: list[float], num_cores: int | None = 8, replicas: tuple[int, ...] = ()
) -> list[str]:
    """Advice on stages, with so many replicas, whose blocks learn for so many seconds in all."""
    start, ranks = 0, []
    for rank, blocks in enumerate(stages):
        sums = [Sum(name="learn", block=start + i, num=10, seconds=s) for i, s in enumerate(blocks)]
        trace = totals_trace(rank, tuple(range(start, start + len(blocks))), {}, cpu_s=sum(blocks))
        assert trace.totals is not None
        totals = trace.totals.model_copy(update={"sums": tuple(sums)})
        ranks.append(replace(trace, totals=totals))
        start += len(blocks)
    others = [rank for rank, num in zip(ranks, replicas, strict=False) for _ in range(num - 1)]
    return advise(summarize(Start(tuple(ranks), tuple(others))), num_cores)


def test_a_slow_stage_of_two_blocks_asks_for_other_stages() -> None:
    (text,) = placed([5], [5, 5])
    assert "It has 2 blocks: --stages 3 is faster" in text


def test_no_number_of_stages_is_advised_that_is_slower() -> None:
    """Of five blocks on three stages two stand still; on one stage, all but one would."""
    assert "--stages 5 is faster" in placed([5], [5, 5], [5, 5])[0]
    assert "--stages 3 takes no longer" in placed([5], [5], [5], [5, 5], num_cores=4)[0]
    assert "Move a cut" in placed([1], [0.5, 19])[0]


def test_fewer_stages_that_make_nothing_faster_are_not_all_that_is_advised() -> None:
    (text,) = placed([5], [5], [5], [5, 5], num_cores=4)
    assert "To be faster, move a cut: " in text
    assert "To be faster" not in placed([5], [5, 5])[0]


def test_stages_are_advised_as_blocks_with_replicas_are_dealt() -> None:
    """The last block's two replicas never share a stage with the others: two stages would take
    the three blocks before it together, and four are five processes."""
    (text,) = placed([1], [1, 1], [1], replicas=(1, 1, 2), num_cores=4)
    assert "--stages" not in text
    assert "Move a cut: " in text
    assert "--stages 4 is faster" in placed([1], [1, 1], [1], replicas=(1, 1, 2))[0]


def test_no_fewer_stages_are_advised_than_replicas_allow() -> None:
    (text,) = placed([1], [1], [1, 40], replicas=(1, 2, 1))
    assert "--stages" not in text
    assert "Move a cut: " in text
    assert "take fewer stages" not in text


def replicated(seconds: dict[str, float], num_cores: int, **more: float) -> list[str]:
    """Advice on two stages with two replicas each."""
    start = made_up_start(seconds, seconds, **more)
    return advise(summarize(Start(start.ranks, others=start.ranks)), num_cores)


def test_replicas_need_processors_too() -> None:
    (text,) = replicated(BUSY, 2, cpu_s=4.5)
    assert text.startswith("4 processes, all replicas of 2 stage(s), share 2 processors")
    assert "other programs" not in text
    rank = totals_trace(0, (0, 1), {"learn": 5.0}, cpu_s=10.0)
    alone = Start((rank,), others=(rank,))
    assert advise(summarize(alone), 2) == []
    assert "--stages 2 blocks" in advise(summarize(alone), 4)[0]


def test_what_replicas_wait_for_is_no_question_of_capacity() -> None:
    (text,) = replicated({"forward": 2.0, "learn": 4.0, "average wait": 4.0}, 8, cpu_s=6.0)
    assert text.startswith("Replicas wait 40% of the time for each other's gradients")


def test_replicas_of_one_stage_wait_for_each_other_too() -> None:
    start = made_up_start({"forward": 2.0, "learn": 4.0, "average wait": 4.0}, cpu_s=6.0)
    (text,) = advise(summarize(Start(start.ranks, others=start.ranks)), 8)
    assert text.startswith("Replicas wait 40% of the time for each other's gradients")


def test_stages_that_wait_in_turn_ask_for_capacity() -> None:
    first = {"forward": 3.0, "learn": 5.0, "send wait": 1.8}
    second = {"forward": 3.0, "learn": 5.0, "receive wait": 1.8}
    (text,) = advice(first, second)
    assert "runtime.capacity = 8 (now 4)" in text


SENDER = {"forward": 2.0, "learn": 4.0, "send wait": 10.0}
RECEIVER = {"forward": 2.0, "learn": 4.0, "receive wait": 10.0}


def test_a_slow_link_is_no_question_of_capacity_nor_of_cuts() -> None:
    (text,) = advice(SENDER, RECEIVER, cpu_s=6.0)
    assert text.startswith("Stage 0 waits to send 62% of the time, and stage 1 to receive 62%")
    assert "split.features_dtype" in text
    assert "runtime.capacity does not help" in text
    uneven = {"forward": 1.0, "learn": 2.0, "receive wait": 10.0}
    (text,) = advice(SENDER, uneven, cpu_s=6.0)
    assert text.startswith("Stage 0 waits to send")


def test_only_large_channels_speak_of_a_link() -> None:
    """With few slots stages wait as long in turn; and of GPUs nobody knows who waits."""
    start = made_up_start(SENDER, RECEIVER, cpu_s=6.0)
    small = Start(tuple(replace(rank, capacity=2) for rank in start.ranks))
    assert "runtime.capacity = 4" in advise(summarize(small), 8)[0]
    assert "runtime.capacity = 8" in advice(SENDER, RECEIVER, num_cores=None, cpu_s=6.0)[0]


def test_one_stage_of_many_blocks_asks_for_more_stages() -> None:
    start = Start((totals_trace(0, (0, 1, 2), {"learn": 5.0}, cpu_s=15.0),))
    assert "--stages 2 to 3" in advise(summarize(start), None)[0]
    assert "--stages 2 blocks" in advise(summarize(start), 2)[0]
    assert advise(summarize(start), 1) == []


def test_many_checkpoints_are_named() -> None:
    summary = summarize(made_up_start({**BUSY, "checkpoint": 2.0}, cpu_s=9.0))
    (text,) = advise(summary, 8, CheckpointConfig(every_steps=5))
    assert text.startswith("Checkpoints take 17% of a stage's time: save less often (checkpoint.")
    (text,) = advise(summary, 8, CheckpointConfig(keep="best"))
    assert "evaluate less often" in text
    rare = summarize(made_up_start({**BUSY, "checkpoint": 0.5}, cpu_s=9.0))
    assert advise(rare, 8, CheckpointConfig(every_steps=5)) == []


def test_checkpoints_that_nobody_asked_for_are_not_held_against_a_run() -> None:
    assert advice({**BUSY, "checkpoint": 2.0}) == []


def steps(rank: int, num: int, *more: Span) -> RankTrace:
    """A second a step: half forward, half learn."""
    spans = [
        part
        for step in range(1, num + 1)
        for part in (
            span("forward", step, step + 0.5, step, rank),
            span("learn", step + 0.5, step + 1, step, rank),
        )
    ]
    return made_up_trace(rank, *spans, *more)


def test_the_stretch_is_in_the_middle() -> None:
    lanes = draw_lanes(Start((steps(0, 11), steps(1, 11))), num_steps=3)
    assert lanes is not None
    assert lanes.seconds == 3
    assert [lane.label for lane in lanes.lanes] == ["stage 0, block 0", "stage 1, block 1"]
    assert lanes.lanes[1].bars[:2] == (Bar("forward", 5, 0, 0.5), Bar("learn", 5, 0.5, 1))
    assert {bar.step for bar in lanes.lanes[1].bars} == {5, 6, 7}


def test_the_stretch_keeps_away_from_evaluations() -> None:
    last = steps(0, 40, span("evaluate", 20.9, 21, step=20, block=0))
    lanes = draw_lanes(Start((last,)), num_steps=3)
    assert lanes is not None
    drawn = {bar.step for bar in lanes.lanes[0].bars}
    assert 20 not in drawn
    assert all(14 <= step <= 24 for step in drawn)


def test_what_is_sent_is_in_the_lane_of_the_last_block() -> None:
    trace = RankTrace(
        *(0, 0),
        (0, 1),
        *(4, "stage 0", "a", 0.0),
        (
            span("receive wait", 0, 1),
            span("forward", 1, 2, block=0),
            span("forward", 2, 3, block=1),
            span("send", 3, 4),
            span("learn", 4, 5, block=1),
        ),
        None,
    )
    lanes = draw_lanes(Start((trace,)))
    assert lanes is not None
    assert [bar.name for bar in lanes.lanes[0].bars] == ["forward"]
    assert [bar.name for bar in lanes.lanes[1].bars] == ["forward", "send", "learn"]


def test_nothing_learned_is_nothing_to_draw() -> None:
    assert draw_lanes(Start((made_up_trace(0, span("start", 0, 1)),))) is None
