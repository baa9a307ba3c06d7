"""When batches end: at once on a processor, by the device's own clock on a GPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

import ppll
from ppll.batch_ends import BatchEnds, read_ends
from ppll.run_folder import RunFolder
from tests.faults import recipe


def test_on_a_processor_a_batch_ends_when_the_host_comes_by(tmp_path: Path) -> None:
    ends, before_s = BatchEnds(torch.device("cpu")), time.monotonic()
    for _ in range(3):
        ends.note()
    times_s = [before_s, *ends.times_s(), time.monotonic()]
    assert times_s == sorted(times_s)
    ends.write(tmp_path / "ends.json", start_step=7)
    assert read_ends(tmp_path / "ends.json") == dict(zip((8, 9, 10), times_s[1:-1], strict=True))


class Gpu:
    """A stand-in: its clock begins anywhere, and it is done only when somebody waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu, self.host_s, self.line_s = self, 1000.0, 5.0
        self.num_waits = 0

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.passed_s = gpu.line_s

            def synchronize(self) -> None:
                gpu.wait()

            def elapsed_time(self, end: Any) -> float:
                return 1e3 * (end.passed_s - self.passed_s)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: self.wait())
        monkeypatch.setattr(time, "monotonic", lambda: self.host_s)

    def wait(self) -> None:
        """The host's 1010 is the device's 20."""
        self.num_waits += 1
        self.line_s = max(self.line_s, self.host_s - 990.0)
        self.host_s = max(self.host_s, self.line_s + 990.0)


def test_of_a_gpu_it_is_told_when_the_device_was_done_and_nobody_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host has lined up three batches before the first has ended."""
    gpu = Gpu(monkeypatch)
    ends = BatchEnds(torch.device("cuda", 0))
    for passed_s in (12.0, 13.0, 15.0):
        gpu.line_s = passed_s
        gpu.host_s += 0.001
        ends.note()
    assert gpu.num_waits == 0
    assert list(ends.times_s()) == pytest.approx([1002.0, 1003.0, 1005.0])


def test_who_asks_late_is_told_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)
    ends = BatchEnds(torch.device("cuda", 0))
    gpu.line_s = 12.0
    ends.note()
    gpu.host_s = 1060.0
    assert list(ends.times_s()) == pytest.approx([1002.0])


def test_a_long_run_does_not_collect_events(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)
    monkeypatch.setattr("ppll.batch_ends._MOST_EVENTS", 3)
    ends = BatchEnds(torch.device("cuda", 0))
    waits = []
    for passed_s in range(11, 18):
        gpu.line_s = passed_s
        ends.note()
        waits.append(gpu.num_waits)
    assert waits == [0, 0, 2, 2, 2, 4, 4]
    assert list(ends.times_s()) == pytest.approx([1001.0 + i for i in range(7)])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_writes_one_time_a_batch(accumulate: int, tmp_path: Path) -> None:
    settings = ["track.batch_ends=true", f"train.accumulate={accumulate}"]
    result = ppll.Trainer(recipe().with_settings(settings), out=tmp_path / "run").fit()
    ends_s = read_ends(RunFolder(tmp_path / "run").batch_ends(0))
    assert list(ends_s) == list(range(1, result.step + 1))
    assert list(ends_s.values()) == sorted(ends_s.values())


def test_batch_ends_need_no_spans_and_stay_when_the_run_is_evaluated(tmp_path: Path) -> None:
    settings = ["track.batch_ends=true", "track.trace_steps=0"]
    ppll.Trainer(recipe().with_settings(settings), out=tmp_path / "run").fit()
    file = RunFolder(tmp_path / "run").batch_ends(0)
    before = file.read_bytes()
    ppll.evaluate(tmp_path / "run")
    assert file.read_bytes() == before
