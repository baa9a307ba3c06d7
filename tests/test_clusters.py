"""What hosts and replicas change in the simulated time."""

from __future__ import annotations

import math

import pytest

from ppll.errors import RecipeError
from ppll.simulation.clusters import COPIED_BYTES_S, Cluster, crossed, simulate_cluster
from ppll.simulation.line_times import (
    BUCKET_BYTES,
    PIECE_BYTES,
    _PlayedLine,
    exposed_s,
    line_bytes,
    line_s,
    made_evenly,
    num_ahead,
)
from ppll.simulation.links import Link, Pipeline, StageTimes
from ppll.simulation.simulate import simulate

STAGE = StageTimes(0.010, 0.020, 1000)
NETWORK = Link(1e6, 0.001, buffers=True)


def test_one_replica_adds_nothing_up() -> None:
    assert line_s(1e9, 1, NETWORK) == 0.0


@pytest.mark.parametrize("num_replicas", [2, 3, 7])
def test_one_piece_passes_every_link_twice(num_replicas: int) -> None:
    seconds = line_s(1000, num_replicas, NETWORK)
    assert seconds == pytest.approx(2 * (num_replicas - 1) * (0.001 + 0.001))


def test_many_pieces_take_what_the_network_takes() -> None:
    """Two hosts send each piece once, each way at a time; one in the middle sends it twice."""
    link, num_pieces = Link(PIECE_BYTES / 1.0), 500
    assert line_s(num_pieces * PIECE_BYTES, 2, link) == pytest.approx(num_pieces + 1)
    assert line_s(num_pieces * PIECE_BYTES, 3, link) == pytest.approx(2 * num_pieces, rel=0.01)


@pytest.mark.parametrize("num_replicas", [2, 3, 6])
def test_a_long_line_goes_on_as_it_began(num_replicas: int) -> None:
    """What is not played, piece by piece, is what playing it would give."""
    link, num_pieces = Link(PIECE_BYTES / 0.01, 0.003), 300
    played = _PlayedLine(num_replicas, 0.01, 0.003).play(num_pieces)
    assert line_s(num_pieces * PIECE_BYTES, num_replicas, link) == pytest.approx(played, rel=0.02)


def test_a_replica_looks_ahead_as_far_as_a_piece_goes() -> None:
    assert [num_ahead(links) for links in (0, 1, 5)] == [0, 2, 10]


@pytest.mark.parametrize(
    ("buffers", "expected"), [(False, 0.010 + 0.050), (True, 0.050)], ids=["channel", "network"]
)
def test_a_network_that_buffers_does_not_hold_the_sender(buffers: bool, expected: float) -> None:
    link = Link(1000 / 0.050, buffers=buffers)
    found = simulate(Pipeline((STAGE, STAGE), (link,)), 500)
    assert found.seconds_per_batch == pytest.approx(expected)


def test_stages_fill_hosts_one_after_the_other() -> None:
    inside = Link()
    cluster = Cluster(2, inside, NETWORK)
    assert cluster.links(5) == (inside, NETWORK, inside, NETWORK)


def test_replicas_add_up_after_every_batch() -> None:
    cluster = Cluster(1, Link(), Link(1e9, 0.001), num_replicas=2)
    found = simulate_cluster(cluster, [STAGE] * 3, [1e6] * 3, 500)
    seconds = line_s(1e6, 2, cluster.between) + line_s(8, 2, cluster.between)
    assert found.average_s == pytest.approx((seconds,) * 3)
    assert found.seconds_per_batch == pytest.approx(0.030 + seconds)


def test_no_batch_takes_less_than_the_busiest_network() -> None:
    """The first host sends its last stage's features and both stages' gradients, twice in the
    middle of a line."""
    cluster = Cluster(2, Link(), Link(1e6), num_replicas=3)
    found = simulate_cluster(cluster, [STAGE] * 4, [40_000] * 4, 500)
    assert found.network_s == pytest.approx((1000 + 2 * 80_000) / 1e6)
    assert found.seconds_per_batch == max(found.network_s, found.pipeline.seconds_per_batch)


def test_replicas_wait_for_the_slowest() -> None:
    """A stage alone takes its mean; of many copies with jitter, nearly the most that it may."""
    options = {"jitter": 0.5, "seed": 3}
    alone = simulate(Pipeline((STAGE,), (), **options), 4000).seconds_per_batch
    many = simulate(Pipeline((STAGE,), (), **options, replicas=9), 4000).seconds_per_batch
    assert alone == pytest.approx(0.030, rel=0.02)
    # The mean of the largest of nine uniform numbers is 9 / 10.
    assert many == pytest.approx(0.030 * (0.5 + 0.9), rel=0.01)


def uneven(*replicas: int, between: Link = NETWORK) -> Cluster:
    return Cluster(2, Link(), between, replicas)


def test_a_link_is_as_slow_as_the_slowest_replica_finds_it() -> None:
    """Two stages a host; the second replica of stage 1 has a host of its own."""
    assert uneven(1, 1, 2, 2).links(4) == (Link(), NETWORK, Link())
    assert uneven(1, 2, 2, 2).links(4) == (NETWORK, NETWORK, Link())


def test_a_network_carries_what_parts_are_sent() -> None:
    """Stage 0 sends half of its features to another host; that host's stage 1 adds up; both send
    what stage 2 joins."""
    first, second = StageTimes(0, 0, 1000), StageTimes(0, 0, 300)
    cluster = Cluster(2, Link(), Link(1.0), (1, 2, 1))
    assert cluster.network_s([first, second, STAGE], [50, 70, 90]) == 500 + 300 + 70
    # One a host, what stage 1 receives is most; then what stage 2 does.
    alone = Cluster(1, Link(), Link(1.0), (1, 2, 1))
    assert alone.network_s([first, second, STAGE], [0, 0, 0]) == 1000
    assert alone.network_s([second, first, STAGE], [0, 0, 0]) == 2000


@pytest.mark.parametrize(("buffers", "expected"), [(True, 400), (False, 100)])
def test_who_joins_receives_all_parts_by_one_network(buffers: bool, expected: int) -> None:
    """Processes of a host copy side by side instead."""
    links = (Link(1e6, buffers=buffers),) * 3
    stages = [StageTimes(0.1, 0.2, 100)] * 4
    found = crossed(stages, [1, 4, 1, 1], links)
    assert [stage.features_bytes for stage in found] == [100, expected, 100, 100]
    joined_s = 400 / COPIED_BYTES_S
    assert [stage.before_send_s for stage in found] == [0.1, 0.1, 0.1 + joined_s, 0.1]
    assert {stage.after_send_s for stage in found} == {0.2}
    assert crossed(stages, [2] * 4, links) == tuple(stages)


def test_a_slow_stage_with_replicas_of_its_own() -> None:
    """It adds up, and the stage after it joins; those with one replica add nothing up."""
    link = Link(1e9, 0.001)
    slow = StageTimes(0.02, 0.04, 10**6)
    cluster = Cluster(8, link, link, (1, 2, 1))
    found = simulate_cluster(cluster, [STAGE, slow, STAGE], [1e6] * 3, 500)
    seconds = line_s(1e6, 2, link) + line_s(8, 2, link)
    assert found.average_s == pytest.approx((0.0, seconds, 0.0))
    assert found.seconds_per_batch == pytest.approx(0.06 + seconds)
    quick = StageTimes(0.001, 0.002, 10**6)
    joined = simulate_cluster(cluster, [quick, quick, STAGE], [1e3] * 3, 500)
    assert joined.seconds_per_batch == pytest.approx(0.030 + 2e6 / COPIED_BYTES_S)


def test_only_stages_with_replicas_wait_for_them() -> None:
    options = {"jitter": 0.5, "seed": 3}
    quick = StageTimes(0.0001, 0.0002)
    many = simulate(Pipeline((STAGE, quick), (Link(),), replicas=(9, 1), **options), 4000)
    other = simulate(Pipeline((STAGE, quick), (Link(),), replicas=(1, 9), **options), 4000)
    assert many.seconds_per_batch == pytest.approx(0.030 * (0.5 + 0.9), rel=0.01)
    assert other.seconds_per_batch == pytest.approx(0.030, rel=0.02)


def test_a_line_needs_room() -> None:
    assert line_bytes(1000, 1) == 0
    assert line_bytes(1000, 2) == 1000 + 3 * 1000
    assert line_bytes(10 * PIECE_BYTES, 4) == (4 + 2 * 7) * PIECE_BYTES


def test_what_is_made_early_is_added_up_meanwhile() -> None:
    """Two buckets in a backward pass of two equal steps: the first is done before it is over."""
    link = Link(BUCKET_BYTES / 0.010)
    bucket_s, number_s = line_s(BUCKET_BYTES, 2, link), line_s(8, 2, link)
    early = [(0.020, BUCKET_BYTES), (0.020, BUCKET_BYTES)]
    assert exposed_s(early, 2, link) == pytest.approx(bucket_s + number_s)
    late = [(0.040, 2 * BUCKET_BYTES)]
    assert exposed_s(late, 2, link) == pytest.approx(2 * bucket_s + number_s)
    # A bucket that is not full waits for more gradients; the second waits for the first.
    small = [(0.001, 0.6 * BUCKET_BYTES), (0.001, 0.6 * BUCKET_BYTES)]
    rest_s = line_s(0.2 * BUCKET_BYTES, 2, link)
    assert exposed_s(small, 2, link) == pytest.approx(bucket_s + rest_s + number_s)
    assert exposed_s(early, 1, link) == 0.0
    assert exposed_s([(0.1, 0)], 2, link) == number_s


def test_gradients_that_are_made_evenly() -> None:
    steps = list(made_evenly(0.025, 2.5 * BUCKET_BYTES))
    assert [num / BUCKET_BYTES for _, num in steps] == [1, 1, 0.5]
    assert [seconds for seconds, _ in steps] == pytest.approx([0.010, 0.010, 0.005])
    assert list(made_evenly(0.025, 0)) == [(0.025, 0)]
    assert len(list(made_evenly(0.02, 2 * BUCKET_BYTES))) == 2


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match="a cluster of 0 replica"):
        Cluster(1, Link(), Link(), 0)
    with pytest.raises(RecipeError, match=r"3 stages with the gradients of 1"):
        simulate_cluster(Cluster(1, Link(), Link()), [STAGE] * 3, [1.0], 10)
    with pytest.raises(RecipeError, match="2 and 3 replicas follow each other"):
        uneven(1, 2, 3)
    with pytest.raises(RecipeError, match="3 stages with the replicas of 2"):
        simulate_cluster(uneven(1, 2), [STAGE] * 3, [1.0] * 3, 10)
    with pytest.raises(RecipeError, match=r"replicas is \(1, 2\) for 1 stage"):
        Pipeline((STAGE,), (), replicas=(1, 2))
    with pytest.raises(RecipeError, match="replicas is 0"):
        Pipeline((STAGE,), (), replicas=0)
    assert math.isfinite(line_s(0, 4, NETWORK))
