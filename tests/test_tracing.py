"""What a rank writes down of its time: which spans, in how much memory, through which failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ppll.status import Activity, Monitor, Status
from ppll.tracing import spans
from ppll.tracing.files import read_starts
from ppll.tracing.spans import SPAN_NAMES, Tracer, Windows


def status(activity: Activity, step: int = 1, *, block: int = 0, since: float = 10.0) -> Status:
    return Status(activity, since, block, step, 0, 0, 3, 2, 0.0, 0.0)


def tracer(path: Path, windows: Windows = Windows(2, 9), capacity: int = 4) -> Tracer:  # noqa: B008
    return Tracer(
        path,
        rank=1,
        stage=1,
        blocks=[0, 1],
        windows=windows,
        capacity=capacity,
        place="stage 1",
        start="a",
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def test_a_file_has_a_head_the_spans_and_the_totals(tmp_path: Path) -> None:
    trace = tracer(tmp_path / "traces" / "rank-1.jsonl")
    trace.add(status(Activity.FORWARD), 10.5)
    trace.add(status(Activity.SEND, block=-1, since=10.5), 10.75)
    trace.close()
    head, forward, send, totals = rows(tmp_path / "traces" / "rank-1.jsonl")
    assert (head["kind"], head["rank"], head["blocks"], head["place"]) == (
        *("start", 1),
        [0, 1],
        "stage 1",
    )
    assert forward == {
        "kind": "span",
        "name": "forward",
        "block": 0,
        "step": 1,
        "start_s": 10.0,
        "end_s": 10.5,
    }
    assert (send["name"], send["block"], send["end_s"]) == ("send", -1, 10.75)
    assert totals["sums"][0] == {"name": "forward", "block": 0, "num": 1, "seconds": 0.5}
    assert totals["inbox_fills"] == [0, 0, 0, 1, 0]
    assert totals["outbox_fills"] == [0, 0, 1, 0, 0]


def test_nothing_counts_after_the_stop(tmp_path: Path) -> None:
    """Replicas that share parameters wait for each other while they finish; who reads the totals
    knows no such thing as to finish."""
    trace = tracer(tmp_path / "rank-0.jsonl")
    trace.add(status(Activity.LEARN), 11.0)
    trace.finish()
    for activity in (Activity.FINISH, Activity.AVERAGE, Activity.FINISH):
        trace.add(status(activity, block=-1), 12.0)
    trace.close()
    *_, totals = rows(tmp_path / "rank-0.jsonl")
    assert [row["name"] for row in totals["sums"]] == ["learn"]
    (start,) = read_starts(tmp_path)
    assert start.ranks[0].totals is not None


@pytest.mark.parametrize("averages_at_end", [False, True])
def test_processor_time_is_that_of_the_time_that_is_summed_up(
    averages_at_end: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was learned is hashed before the file is closed: no work of the stage."""
    seconds = {"now": 1.0}
    monkeypatch.setattr("time.thread_time", lambda: seconds["now"])
    monitor = Monitor()
    monitor.recorder = trace = tracer(tmp_path / "t.jsonl")
    monitor.enter(Activity.LEARN)
    seconds["now"] = 3.0
    monitor.enter(Activity.FINISH)
    seconds["now"] = 9.0
    if averages_at_end:
        monitor.enter(Activity.AVERAGE)
        monitor.enter(Activity.FINISH)
    trace.close()
    assert rows(tmp_path / "t.jsonl")[-1]["cpu_s"] == 2


def test_a_rank_that_fails_has_its_processor_time_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([1.0, 4.0])
    monkeypatch.setattr("time.thread_time", lambda: next(seconds))
    tracer(tmp_path / "t.jsonl").close()
    assert rows(tmp_path / "t.jsonl")[-1]["cpu_s"] == 3


def test_the_first_and_the_last_steps_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    windows = Windows.of(2, start_step=10, num_steps=20)
    trace = tracer(tmp_path / "t.jsonl", windows)
    for step in range(11, 21):
        trace.add(status(Activity.LEARN, step), 11.0)
    trace.close()
    *_, totals = found = rows(tmp_path / "t.jsonl")
    assert [row["step"] for row in found if row["kind"] == "span"] == [11, 12, 19, 20]
    assert totals["sums"][0]["num"] == 10


def test_the_first_window_is_on_the_disk_when_it_is_over(tmp_path: Path) -> None:
    trace = tracer(tmp_path / "t.jsonl")
    for step in (1, 2, 3):
        trace.add(status(Activity.LEARN, step), 11.0)
    assert [row["step"] for row in rows(tmp_path / "t.jsonl")[1:]] == [1, 2]
    trace.close()


def test_a_window_never_takes_more_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "_MAX_SPANS", 3)
    trace = tracer(tmp_path / "t.jsonl")
    for _ in range(5):
        trace.add(status(Activity.LEARN, 1), 11.0)
    trace.add(status(Activity.LEARN, 5), 11.0)
    trace.add(status(Activity.LEARN, 9), 11.0)  # the next window has room again
    trace.close()
    *_, totals = found = rows(tmp_path / "t.jsonl")
    assert [row["step"] for row in found if row["kind"] == "span"] == [1, 1, 1, 9]
    assert totals["num_dropped"] == 2
    assert totals["sums"][0]["num"] == 7


def test_a_fuller_channel_than_announced_counts_as_full(tmp_path: Path) -> None:
    trace = tracer(tmp_path / "t.jsonl", capacity=1)
    trace.add(status(Activity.FORWARD), 11.0)
    trace.close()
    assert rows(tmp_path / "t.jsonl")[-1]["inbox_fills"] == [0, 1]


def test_a_later_start_adds_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"kind": "sp')  # of a process that was killed
    tracer(path).close()
    tracer(path).close()
    kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()[1:] if line]
    assert kinds == ["start", "totals", "start", "totals"]


def test_a_monitor_tells_its_recorder_what_is_over() -> None:
    told: list[tuple[str, int, int]] = []

    class Recorder:
        def add(self, status: Status, end_s: float) -> None:
            assert end_s >= status.since
            told.append((status.activity.name, status.block, status.step))

        def finish(self) -> None:
            told.append(("over", -1, 0))

    monitor = Monitor()
    monitor.recorder = Recorder()
    monitor.enter(Activity.RECEIVE)
    monitor.enter(Activity.FORWARD, block=2, step=7)
    monitor.enter(Activity.FINISH)
    assert told == [("START", -1, 0), ("RECEIVE", -1, 0), ("FORWARD", 2, 7), ("over", -1, 0)]


def test_every_activity_has_a_name() -> None:
    assert set(SPAN_NAMES) == set(Activity)
