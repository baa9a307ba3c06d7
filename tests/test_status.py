"""A rank's page, and the seconds of its activities."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import pytest

from ppll.status import Activity, Monitor, Status, StatusPage

FULL = Status(Activity.LEARN, 12.5, 3, 2**40, 7, 2**41, 4, 2, 0.25, 0.75)


class Clock:
    """Stands still until it is told to move."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("ppll.status.time", clock)
    return clock


@pytest.fixture
def page() -> Iterator[StatusPage]:
    page = StatusPage()
    yield page
    page.close()


def test_a_page_reads_back_through_another_mapping(page) -> None:
    other = StatusPage(os.dup(page.descriptor))
    page.write(FULL)
    assert other.read() == page.read() == FULL
    other.close()


def test_a_new_page_says_start(page) -> None:
    status = page.read()
    assert (status.activity, status.block, status.step) == (Activity.START, -1, 0)
    assert math.isnan(status.loss)


def test_a_page_written_half_way_shows_what_was_read_before(page) -> None:
    page.write(FULL)
    page.read()
    page._memory[8:12] = b"\xff" * 4
    assert page.read() == FULL


def test_these_activities_wait() -> None:
    assert [a.name for a in Activity if a.waits] == ["RECEIVE", "SEND_WAIT", "AVERAGE"]


def test_a_monitor_adds_up_seconds(clock, page) -> None:
    monitor = Monitor(page)
    clock.now += 50
    monitor.start_clock()
    for activity, seconds in [("LEARN", 3.0), ("RECEIVE", 1.0), ("LEARN", 4.0), ("FINISH", 0)]:
        monitor.enter(Activity[activity])
        clock.now += seconds
    assert monitor.seconds[Activity.LEARN] == 7
    assert monitor.elapsed_s == 8
    assert monitor.busy_fraction() == 7 / 8


def test_no_time_at_all_is_not_busy(clock, page) -> None:
    assert Monitor(page).busy_fraction() == 0


def test_a_monitor_writes_what_it_is_told(clock, page) -> None:
    monitor = Monitor(page)
    monitor.num_samples = 64
    monitor.note(loss=0.5, accuracy=0.9, outbox_fill=2)
    monitor.enter(Activity.FORWARD, block=1, step=9)
    clock.now += 1
    monitor.enter(Activity.LEARN, block=1)
    found = page.read()
    assert found == monitor.status
    assert (found.activity, found.since, found.block) == (Activity.LEARN, 101, 1)
    assert (found.step, found.samples, found.loss, found.outbox_fill) == (9, 64, 0.5, 2)
