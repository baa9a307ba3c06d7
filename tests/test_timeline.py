"""Spans of all ranks, read back, on one clock, as a file for Perfetto."""

from __future__ import annotations

import itertools
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import ppll
from ppll.errors import RunFolderError, WorkerError
from ppll.testing import FAULT_VARIABLE, Fault
from ppll.tracing.files import Start, aligned, read_starts
from ppll.tracing.timeline import merge_timeline, trace_events
from tests.traces import made_up_trace, span

RECIPE: dict[str, dict[str, Any]] = {
    "data": {"name": "synthetic", "shape": [1, 8, 8], "num_train": 60, "num_test": 20},
    "model": {"name": "resnet", "depth": 14, "width": 4},
    "split": {"blocks": 2},
    "train": {"epochs": 2},
}
RECIPE["data"]["batch_size"] = 20


def train(out: Path, *, stages: int = 1, track: dict[str, Any] | None = None, **more: Any) -> None:
    sections = {**RECIPE, "runtime": {"stages": stages}, "track": track or {}}
    ppll.Trainer(sections, out=out, **more).fit()


def timeline(run: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads((run / "timeline.json").read_text())["traceEvents"]
    return events


def names_by_stage(run: Path) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for event in timeline(run):
        if event["ph"] == "X":
            found.setdefault(event["pid"], set()).add(event["name"])
    return found


def test_one_stage_has_a_timeline(tmp_path: Path) -> None:
    train(tmp_path / "run")
    found = names_by_stage(tmp_path / "run")
    assert found == {
        0: {"start", "receive wait", "forward", "learn", "count", "checkpoint"}
        | {"evaluation forward", "evaluate"},
    }
    learned = [
        (e["tid"], e["args"]["step"]) for e in timeline(tmp_path / "run") if e["name"] == "learn"
    ]
    assert sorted(learned) == [(row, step) for row in (1, 2) for step in range(1, 7)]


@pytest.mark.processes
def test_stages_share_a_clock(tmp_path: Path) -> None:
    train(tmp_path / "run", stages=2)
    assert {"send", "forward", "learn"} <= names_by_stage(tmp_path / "run")[0]
    events = [e for e in timeline(tmp_path / "run") if e["ph"] == "X"]
    for step in range(1, 7):
        of_step = [e for e in events if e["args"].get("step") == step]
        sent = min(e["ts"] for e in of_step if e["name"] == "send")
        used = min(e["ts"] for e in of_step if e["name"] == "forward" and e["pid"] == 1)
        assert sent < used
    assert min(e["ts"] for e in events) == 0


@pytest.mark.parametrize("stages", [1, pytest.param(2, marks=pytest.mark.processes)])
def test_a_failed_and_resumed_run_shows_both_starts(
    stages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv(FAULT_VARIABLE, Fault(0, 2).to_environment()[FAULT_VARIABLE])
    with pytest.raises(WorkerError):
        train(run, stages=stages)
    assert {"forward", "learn"} <= names_by_stage(run)[0]
    monkeypatch.delenv(FAULT_VARIABLE)
    train(run, stages=stages, resume=True)
    starts = read_starts(run / "traces")
    assert [len(start.ranks) for start in starts] == [stages, stages]
    assert starts[0].began_s < starts[1].began_s
    assert {e["args"]["start"] for e in timeline(run) if e["ph"] == "X"} == {0, 1}


def test_it_can_be_turned_off_and_changes_nothing(tmp_path: Path) -> None:
    train(tmp_path / "on")
    train(tmp_path / "off", track={"trace_steps": 0})
    assert not (tmp_path / "off" / "traces").exists()
    assert not (tmp_path / "off" / "timeline.json").exists()
    hashes = {
        json.loads((tmp_path / name / "result.json").read_text())["weights_sha256"]
        for name in ("on", "off")
    }
    assert len(hashes) == 1


def test_a_run_may_go_on_with_another_setting(tmp_path: Path) -> None:
    train(tmp_path / "run")
    train(tmp_path / "run", track={"trace_steps": 0}, resume=True)


def test_lines_that_are_no_spans_are_passed_over(tmp_path: Path) -> None:
    head = {
        **{"kind": "start", "start": "a", "rank": 0, "place": "stage 0", "blocks": [0]},
        **{"capacity": 4, "clock": "c", "wall_s": 100.0, "monotonic_s": 40.0},
    }
    good = {"kind": "span", **span("learn", 50, 51).model_dump()}
    bad: list[Any] = [
        {**good, "name": "<script>"},
        {**good, "start_s": "soon"},
        {**good, "start_s": -1},
        {**good, "step": 2**70},
        {"kind": "totals", "sums": 3},
        [1],
    ]
    lines = [
        json.dumps(good),
        *map(json.dumps, [head, *bad, good]),
        '{"kind": "sp',
        "\x00",
        "[" * 9999,
    ]
    (tmp_path / "rank-0.jsonl").write_text("\n".join(lines))
    (start,) = read_starts(tmp_path)
    assert start.ranks[0].spans == (span("learn", 110, 111),)


def test_a_file_that_cannot_be_read_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "rank-0.jsonl").mkdir()
    with pytest.raises(RunFolderError, match="cannot read"):
        read_starts(tmp_path)
    with caplog.at_level(logging.WARNING):
        merge_timeline(tmp_path, tmp_path / "timeline.json")
    assert "no timeline" in caplog.text
    assert not (tmp_path / "timeline.json").exists()


def test_ranks_of_one_clock_are_moved_alike() -> None:
    one = made_up_trace(1, span("forward", 2, 3), offset_s=10.0)
    zero = made_up_trace(0, span("send", 1, 2), offset_s=10.5)
    first, second = aligned([one, zero])
    assert (first.rank, second.rank) == (0, 1)
    assert second.spans[0].start_s - first.spans[0].start_s == 1


def test_a_start_that_only_tests_tells_who_sent_first() -> None:
    sender = made_up_trace(0, span("evaluation forward", 4, 5, block=0), span("evaluate", 5, 6))
    other = made_up_trace(1, span("evaluation forward", 2, 3, block=1), clock="b")
    first, second = aligned([sender, other])
    assert second.spans[0].start_s >= first.spans[1].start_s


@example(
    clocks=["c", "b", "a", "c"],  # the first host is met again
    errors={"a": 0.0, "b": -3.0, "c": -2.0},
    delays=[1.0] * 5,
)
@given(
    clocks=st.lists(st.sampled_from("abc"), min_size=2, max_size=5),
    errors=st.fixed_dictionaries({c: st.floats(-5, 5) for c in "abc"}),
    delays=st.lists(st.floats(0.001, 2), min_size=5, max_size=5),
)
def test_no_message_is_used_before_it_was_sent(
    clocks: list[str], errors: dict[str, float], delays: list[float]
) -> None:
    """True times are 100 s and on; every clock is wrong by its own error."""
    traces, now_s = [], 100.0
    for rank, clock in enumerate(clocks):
        sent_s = now_s + 1
        spans = (
            span("forward", now_s + errors[clock], sent_s + errors[clock]),
            span("send", sent_s + errors[clock], sent_s + 1 + errors[clock]),
        )
        traces.append(made_up_trace(rank, *spans, clock=clock))
        now_s = sent_s + delays[rank]
    ordered = aligned(traces)
    for before, after in itertools.pairwise(ordered):
        assert after.spans[0].start_s >= before.spans[1].start_s - 1e-6
    for trace, found in zip(traces, ordered, strict=True):
        moved = {
            round(b.start_s - a.start_s, 6) for a, b in zip(trace.spans, found.spans, strict=True)
        }
        assert len(moved) == 1


def test_replicas_follow_the_stage_before_and_not_each_other() -> None:
    """One of stage 1 is on another clock, and seems to use features before they are sent."""
    first = made_up_trace(0, span("send", 2.0, 2.1))
    spans = span("forward", 3.0, 3.1), span("send", 5.0, 5.1)
    second = made_up_trace(1, *spans)
    third = replace(made_up_trace(2, span("forward", 1.0, 1.1), clock="b"), blocks=(1,), replica=1)
    found = aligned([first, second, third])
    assert found[2].spans[0].start_s == pytest.approx(2.0)
    assert found[1].spans == spans


def test_events_name_stages_and_blocks_once() -> None:
    start = Start((made_up_trace(0, span("learn", 5, 6, block=0)), made_up_trace(1)))
    events = list(trace_events([start, start]))
    labels = [e["args"]["name"] for e in events if e["ph"] == "M"]
    assert labels == [
        *("stage 0", "waits, sends, saves", "block 0"),
        *("stage 1", "waits, sends, saves", "block 1"),
    ]
    assert [(e["ts"], e["dur"], e["tid"]) for e in events if e["ph"] == "X"] == [(0, 1e6, 1)] * 2


def test_a_start_without_spans_says_nothing_of_when_the_run_began() -> None:
    """A rank that was killed before its first window was over leaves a head and no more."""
    traced = Start((made_up_trace(0, span("learn", 1.7e9, 1.7e9 + 1, block=0)),))
    events = list(trace_events([traced, Start((made_up_trace(0),))]))
    assert [e["ts"] for e in events if e["ph"] == "X"] == [0]
