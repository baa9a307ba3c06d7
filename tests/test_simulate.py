"""The vectorised simulation, against stages that are played one event at a time."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from ppll.errors import RecipeError
from ppll.randomness import fold
from ppll.simulation.simulate import Link, Pipeline, Simulation, StageTimes, simulate

FOREVER = Link()


class Slots:
    """A channel (or the loader's queue): what its two ends see, and when."""

    def __init__(self, capacity: int) -> None:
        self.arrived = 0
        self.credits = capacity


class Played:
    """Plays a pipeline with a clock and a heap; every stage is a generator, as a worker is.

    A generator yields a number of seconds to pass, or a function to wait for until it is true.
    """

    def __init__(self, pipeline: Pipeline, num_batches: int) -> None:
        self.pipeline, self.num_batches = pipeline, num_batches
        self.now = 0.0
        self.order = itertools.count()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        num_stages = len(pipeline.stages)
        self.slots = [Slots(pipeline.capacity) for _ in range(num_stages)]
        self.done: list[list[float]] = [[] for _ in range(num_stages)]
        self.begin = [0.0] * num_stages
        self.receive_wait = [0.0] * num_stages
        self.send_wait = [0.0] * num_stages
        self.waiting: list[tuple[Callable[[], bool], Iterator[Any]]] = []
        for process in (self.loader(), *(self.stage(i) for i in range(num_stages))):
            self.resume(process)
        while self.events:
            self.now, _, action = heapq.heappop(self.events)
            action()
            self.wake()

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + delay_s, next(self.order), action))

    def resume(self, process: Iterator[Any]) -> None:
        for request in process:
            if not callable(request):
                self.at(request, lambda: self.resume(process))
                return
            if not request():
                self.waiting.append((request, process))
                return

    def wake(self) -> None:
        while ready := [entry for entry in self.waiting if entry[0]()]:
            self.waiting.remove(ready[0])
            self.resume(ready[0][1])

    def arrive(self, slots: Slots) -> None:
        slots.arrived += 1

    def give_back(self, slots: Slots) -> None:
        slots.credits += 1

    def loader(self) -> Iterator[Any]:
        for _ in range(self.num_batches):
            yield lambda: self.slots[0].credits > 0
            self.slots[0].credits -= 1
            yield self.pipeline.load_s
            self.arrive(self.slots[0])

    def factor(self, stage: int, batch: int) -> float:
        bits = fold(self.pipeline.seed, "jitter", (stage << 40) + batch) >> 11
        jitter = self.pipeline.jitter * (bits / 2**52 - 1)
        return (1 + jitter) * self.pipeline.stragglers.get(stage, 1.0)

    def stage(self, index: int) -> Iterator[Any]:
        times, inbox = self.pipeline.stages[index], self.slots[index]
        for batch in range(self.num_batches):
            since = self.now
            yield lambda: inbox.arrived > 0
            inbox.arrived -= 1
            if batch == 0:
                self.begin[index] = self.now
            else:
                self.receive_wait[index] += self.now - since
            factor = self.factor(index, batch)
            yield times.before_send_s * factor
            sent_at = self.now
            if index < len(self.pipeline.links):
                yield from self.send(index)
                sent_at = self.sent_at
            yield times.after_send_s * factor
            if self.now < sent_at:
                yield sent_at - self.now  # flush
            self.done[index].append(self.now)
            latency_s = self.pipeline.links[index - 1].latency_s if index else 0.0
            self.at(latency_s, lambda: self.give_back(inbox))

    def send(self, index: int) -> Iterator[Any]:
        link, outbox = self.pipeline.links[index], self.slots[index + 1]
        since = self.now
        yield lambda: outbox.credits > 0
        outbox.credits -= 1
        self.send_wait[index] += self.now - since
        transfer_s = link.transfer_s(self.pipeline.stages[index].features_bytes)
        self.at(transfer_s + link.latency_s, lambda: self.arrive(outbox))
        sent_at = self.now + transfer_s
        if not link.overlaps:
            yield transfer_s
        self.sent_at = sent_at

    def result(self) -> Simulation:
        last, count = self.done[-1], self.num_batches - 1
        seconds = max(done[-1] for done in self.done)
        spans = [done[-1] - begin for done, begin in zip(self.done, self.begin, strict=True)]
        waits = [sum(pair) for pair in zip(self.receive_wait, self.send_wait, strict=True)]
        return Simulation(
            seconds,
            (last[-1] - last[0]) / count if count else seconds,
            tuple(1 - w / s if s else 0.0 for w, s in zip(waits, spans, strict=True)),
            tuple(self.receive_wait),
            tuple(self.send_wait),
        )


def assert_alike(found: Simulation, expected: Simulation) -> None:
    tolerance = {"rel": 1e-9, "abs": 1e-9 * max(expected.seconds, 1.0)}
    for name, value in vars(expected).items():
        assert getattr(found, name) == pytest.approx(value, **tolerance), name


SECONDS = st.one_of(st.integers(0, 4).map(float), st.floats(0, 5).map(lambda s: round(s, 3)))
STAGES = st.builds(StageTimes, SECONDS, SECONDS, st.integers(0, 3))
LINKS = st.builds(Link, st.sampled_from([1.0, 2.0, math.inf]), SECONDS, st.booleans())


@st.composite
def pipelines(draw, max_stages: int, jitters: st.SearchStrategy[float]) -> Pipeline:
    stages = draw(st.lists(STAGES, min_size=1, max_size=max_stages))
    links = draw(st.lists(LINKS, min_size=len(stages) - 1, max_size=len(stages) - 1))
    return Pipeline(
        tuple(stages),
        tuple(links),
        capacity=draw(st.integers(1, 5)),
        load_s=draw(SECONDS),
        jitter=draw(jitters),
        stragglers=draw(st.dictionaries(st.integers(0, len(stages) - 1), st.just(2.5))),
        seed=draw(st.integers(0, 3)),
    )


@hypothesis.settings(deadline=None, derandomize=True, max_examples=100)
@hypothesis.given(pipelines(6, st.sampled_from([0.0, 0.3, 1.0])), st.integers(1, 25))
def test_it_is_what_plays_out(pipeline: Pipeline, num_batches: int) -> None:
    assert_alike(simulate(pipeline, num_batches), Played(pipeline, num_batches).result())


@hypothesis.settings(deadline=None, derandomize=True, max_examples=100)
@hypothesis.given(pipelines(4, st.just(0.0)), st.integers(90, 300))
def test_skipped_periods_are_those_that_play_out(pipeline: Pipeline, num_batches: int) -> None:
    assert_alike(simulate(pipeline, num_batches), Played(pipeline, num_batches).result())


@hypothesis.settings(deadline=None, derandomize=True, max_examples=60)
@hypothesis.given(pipelines(5, st.just(0.0)))
def test_the_slowest_cycle_sets_the_pace(pipeline: Pipeline) -> None:
    """A stage, or a channel whose slots come back too late."""
    slower = [pipeline.stragglers.get(i, 1.0) for i in range(len(pipeline.stages))]
    links = (*pipeline.links, Link())
    cycles = [pipeline.load_s]
    cycle_of_channel = pipeline.load_s
    for factor, times, link in zip(slower, pipeline.stages, links, strict=True):
        transfer_s = link.transfer_s(times.features_bytes)
        copy_s = 0.0 if link.overlaps else transfer_s
        period = factor * times.before_send_s
        period += max(factor * times.after_send_s + copy_s, transfer_s)
        cycles += [period, (cycle_of_channel + period) / pipeline.capacity]
        cycle_of_channel = transfer_s + 2 * link.latency_s
    long, longer = (simulate(pipeline, n).seconds for n in (10**6, 2 * 10**6))
    assert (longer - long) / 10**6 == pytest.approx(max(cycles), rel=1e-6, abs=1e-9)


def even(num_stages: int, **options: Any) -> Pipeline:
    stage = StageTimes(10e-3, 20e-3, 2**22)
    return Pipeline((stage,) * num_stages, (FOREVER,) * (num_stages - 1), **options)


def test_one_stage_takes_the_sum_of_its_work() -> None:
    found = simulate(even(1), 1000)
    assert found.seconds == pytest.approx(30.0)
    assert found.busy_fraction == pytest.approx((1.0,))


def test_features_are_sent_before_learning() -> None:
    """The last of four stages begins after three forward passes, not after three batches."""
    found = simulate(even(4), 100)
    assert found.seconds == pytest.approx(3 * 10e-3 + 100 * 30e-3)
    assert found.seconds_per_batch == pytest.approx(30e-3)
    assert found.busy_fraction == pytest.approx((1.0,) * 4)


def test_who_waits_says_who_is_slow() -> None:
    found = simulate(even(3, stragglers={1: 2.0}), 1000)
    assert found.seconds_per_batch == pytest.approx(60e-3)
    assert found.busy_fraction == pytest.approx((0.5, 1.0, 0.5), abs=0.01)
    assert found.send_wait_s[0] == pytest.approx(30.0, rel=0.01)
    assert found.receive_wait_s[2] == pytest.approx(30.0, rel=0.01)
    others = [found.receive_wait_s[0], found.send_wait_s[1], found.send_wait_s[2]]
    assert others == pytest.approx([0.0] * 3, abs=1e-9)


def test_a_slow_loader_is_waited_for() -> None:
    assert simulate(even(2, load_s=50e-3), 101).seconds_per_batch == pytest.approx(50e-3)


def test_a_transfer_hides_behind_learning() -> None:
    stages = (StageTimes(10e-3, 20e-3, 15e6), StageTimes(10e-3, 20e-3))
    hidden, copied = (
        simulate(Pipeline(stages, (Link(1e9, overlaps=overlaps),)), 100).seconds_per_batch
        for overlaps in (True, False)
    )
    assert (hidden, copied) == pytest.approx((30e-3, 45e-3))


def test_latency_is_hidden_by_capacity_only() -> None:
    stages = (StageTimes(10e-3, 20e-3),) * 2
    periods = [
        simulate(Pipeline(stages, (Link(latency_s=60e-3),), capacity=c), 401).seconds_per_batch
        for c in (1, 2, 5)
    ]
    assert periods == pytest.approx([150e-3, 75e-3, 30e-3])


def test_slots_absorb_jitter() -> None:
    periods = [
        simulate(even(8, capacity=c, jitter=0.5), 3000).seconds_per_batch for c in (1, 2, 4, 16)
    ]
    assert periods == sorted(periods, reverse=True)
    assert 30e-3 < periods[-1] < 1.03 * 30e-3 < 1.1 * 30e-3 < periods[0]


def test_the_seed_is_all_that_jitter_depends_on() -> None:
    runs = [simulate(even(3, jitter=0.2, seed=seed), 50) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_a_thousand_stages_and_a_million_batches_take_seconds() -> None:
    began = time.monotonic()
    found = simulate(even(1024, stragglers={700: 1.5}), 10**6)
    assert found.seconds_per_batch == pytest.approx(45e-3)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StageTimes(-1, 0), "before_send_s is -1: give a finite number, at least 0"),
        (lambda: StageTimes(0, math.nan), "after_send_s is nan: give a finite number"),
        (lambda: StageTimes(0, 0, -8), "features_bytes is -8"),
        (lambda: Link(0.0), "bandwidth_bytes_s is 0.0: give bytes per second, above 0"),
        (lambda: Link(math.nan), "bandwidth_bytes_s is nan"),
        (lambda: Link(latency_s=math.inf), "latency_s is inf"),
        (lambda: Pipeline((), ()), r"0 stage\(s\) has 0 link\(s\): give at least one stage"),
        (lambda: Pipeline((StageTimes(1, 1),), (FOREVER,)), r"1 stage\(s\) has 1 link\(s\)"),
        (lambda: even(2, capacity=0), "capacity is 0: a channel has 1 slot or more"),
        (lambda: even(2, load_s=-1.0), "load_s is -1.0"),
        (lambda: even(2, jitter=1.5), "jitter is 1.5: give a share of the time, 0 to 1"),
        (lambda: even(2, stragglers={2: 2.0}), "names stage 2: there are 0 to 1"),
        (lambda: even(2, stragglers={1: -2.0}), "straggler 1 is -2.0: give a finite number"),
        (lambda: simulate(even(1), 0), "cannot simulate 0 batches"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()
