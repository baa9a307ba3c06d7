"""Counters of blocks, and the files they are written to."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from ppll.metrics import Counts, MetricsFile, Tally, cut_back, merge_metrics


def test_counts_are_means_over_samples_of_unequal_batches() -> None:
    counts = Counts(torch.device("cpu"))
    logits = torch.eye(3)
    for loss, targets in ((1.0, torch.tensor([0, 1, 2])), (5.0, torch.tensor([2]))):
        counts.add(torch.tensor(loss), logits[: len(targets)], targets)
        counts.count(targets)
    assert counts.take() == Tally(samples=4, loss=pytest.approx(2.0), accuracy=0.75)
    empty = counts.take()
    assert (empty.samples, math.isnan(empty.loss), math.isnan(empty.accuracy)) == (0, True, True)


def test_batches_that_were_not_learned_from_count_apart() -> None:
    counts = Counts(torch.device("cpu"))
    counts.add(torch.tensor(1.0), torch.eye(2), torch.tensor([0, 1]))
    counts.count(torch.tensor([0, 1]))
    counts.begin_batch()
    for targets in (torch.tensor([0, 1]), torch.tensor([1])):
        counts.add(torch.tensor(3.0), torch.eye(2)[: len(targets)], targets)
        counts.count(targets)
    counts.leave_out_batch()
    assert counts.take() == Tally(samples=2, loss=1.0, accuracy=1.0, skipped=3)
    assert counts.take().skipped == 0


def test_a_number_that_is_not_finite_is_null(tmp_path) -> None:
    file = MetricsFile(tmp_path / "rank-0.jsonl")
    file.write(loss=float("nan"), accuracy=0.5)
    file.close()
    assert (tmp_path / "rank-0.jsonl").read_text() == '{"loss": null, "accuracy": 0.5}\n'


def test_what_came_after_a_checkpoint_is_forgotten(tmp_path) -> None:
    rows = [(2, "train"), (3, "train"), (3, "validation"), (4, "train")]
    for rank in (0, 1):
        file = MetricsFile(tmp_path / f"rank-{rank}.jsonl")
        for step, kind in rows:
            file.write(step=step, kind=kind, block=rank)
        file.close()
    for _ in range(2):  # a second cut leaves what the first has left
        cut_back(tmp_path, 3)
    for rank in (0, 1):
        lines = (tmp_path / f"rank-{rank}.jsonl").read_text().splitlines()
        left = [json.loads(line) for line in lines]
        assert [(row["step"], row["kind"]) for row in left] == [(2, "train"), (3, "train")]


def test_counting_keeps_no_graph() -> None:
    counts = Counts(torch.device("cpu"))
    logits = torch.eye(2, requires_grad=True)
    counts.add(logits.sum(), logits, torch.tensor([0, 1]))
    assert not counts._sums.requires_grad


def test_rows_are_merged_by_step_and_block(tmp_path) -> None:
    for rank, rows in enumerate([[(1, 0), (2, 0)], [(1, 1), (2, 1)]]):
        file = MetricsFile(tmp_path / "parts" / f"rank-{rank}.jsonl")
        for step, block in rows:
            file.write(step=step, block=block)
        file.close()
    with (tmp_path / "parts" / "rank-1.jsonl").open("a") as torn:
        torn.write('{"step": 3, "blo')
    target = tmp_path / "metrics.jsonl"
    merge_metrics(tmp_path / "parts", target)
    merged = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(row["step"], row["block"]) for row in merged] == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_a_full_disk_leaves_no_metrics_of_an_earlier_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("ppll.metrics.write_whole", full)
    target = tmp_path / "metrics.jsonl"
    target.write_text("of an earlier start")
    merge_metrics(tmp_path / "parts", target)
    assert not target.exists()


def test_a_resumed_run_appends_and_flushed_rows_can_be_read(tmp_path) -> None:
    path = tmp_path / "rank-0.jsonl"
    for step in (1, 2):
        file = MetricsFile(path)
        file.write(step=step)
        file.flush()
        assert len(path.read_text().splitlines()) == step
        file.close()
