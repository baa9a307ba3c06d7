"""What hosts and replicas change in the simulated time."""

from __future__ import annotations

import math

import pytest

from ppll.clusters import PIECE_BYTES, Cluster, _PlayedLine, line_s, num_ahead, simulate_cluster
from ppll.errors import RecipeError
from ppll.links import Link, Pipeline, StageTimes
from ppll.simulate import simulate

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


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match="a cluster of 0 replica"):
        Cluster(1, Link(), Link(), 0)
    with pytest.raises(RecipeError, match=r"3 stages with the gradients of 1"):
        simulate_cluster(Cluster(1, Link(), Link()), [STAGE] * 3, [1.0], 10)
    with pytest.raises(RecipeError, match="replicas is 0"):
        Pipeline((STAGE,), (), replicas=0)
    assert math.isfinite(line_s(0, 4, NETWORK))
