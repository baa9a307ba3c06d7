"""Charts: what is drawn where, and that numbers of any size can be drawn."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ppll.reports.charts import Series, draw_lanes_svg, line_chart
from ppll.tracing.lanes import Bar, Lane, Lanes
from tests.test_markup import Reader

numbers = st.floats(-1e15, 1e15)


def points_of(chart: str) -> list[tuple[float, float]]:
    text = re.search(r'points="([^"]*)"', chart)[1]  # type: ignore[index]
    pairs = (pair.split(",") for pair in text.split())
    return [(float(x), float(y)) for x, y in pairs]


def test_a_line_rises_from_left_to_right() -> None:
    chart = line_chart("t", [Series("a", "red", ((0, 0), (5, 1), (10, 2)))])
    assert chart is not None
    for (x0, y0), (x1, y1) in pairwise(points_of(chart)):
        assert x0 < x1
        assert y0 > y1  # SVG counts from the top


def test_no_points_are_no_chart() -> None:
    assert line_chart("t", [Series("a", "red", ())]) is None


def test_one_point_is_a_dot() -> None:
    chart = line_chart("t", [Series("a", "red", ((3, 0.5),))], percent=True)
    assert chart is not None
    assert "circle" in Reader(chart).elements
    assert "50 %" in Reader(chart).text


def test_an_axis_of_shares_ends_where_shares_do() -> None:
    rising = Series("a", "red", ((0, 0), (5, 0.4), (10, 1)))
    shares, numbers = (line_chart("t", [rising], percent=p) for p in (True, False))
    assert shares is not None
    assert numbers is not None
    top, bottom = 8, 210 - 26  # of the frame; what is no share has some air there
    assert (points_of(shares)[-1][1], points_of(shares)[0][1]) == (top, bottom)
    assert points_of(numbers)[-1][1] > top


def test_long_lines_are_thinned() -> None:
    chart = line_chart("t", [Series("a", "red", tuple((i, i % 2) for i in range(10_000)))])
    assert chart is not None
    assert 250 < len(points_of(chart)) <= 300


@given(st.lists(st.tuples(st.floats(0, 2**62), numbers), min_size=1, max_size=5))
def test_any_finite_numbers_can_be_drawn(points: list[tuple[float, float]]) -> None:
    chart = line_chart("t", [Series("a", "red", tuple(sorted(points)))])
    assert chart is not None
    for value in re.findall(r' (?:x|y|x1|y1|cx|cy|points)="([^"]*)"', chart):
        for number in re.split("[ ,]", value):
            assert -1 <= float(number) <= 361


def test_a_timeline_has_a_bar_a_span() -> None:
    lane = Lane("stage 0, block 0", (Bar("forward", 7, 0, 0.5), Bar("receive wait", 7, 0.5, 1)))
    found = Reader(draw_lanes_svg(Lanes(1.0, (lane,))))
    assert found.elements.count("rect") == 2
    assert "forward, step 7: 500.00 ms" in found.text
    assert "stage 0, block 0" in found.text
