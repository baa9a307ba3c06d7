"""Two stages that save: the last commits only what all before it have on disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ppll.checkpoints.manifest import ValidationRecord
from ppll.checkpoints.reader import TensorReader
from ppll.checkpoints.recovery import newest_whole
from ppll.checkpoints.saving import Saver, SaveRules
from ppll.message import NOTHING_SAVED
from ppll.stream import EVERYTHING_SAVED
from tests.interleaving import MadeUpBatches, blueprint_of, built_blocks, small_recipe


@pytest.fixture
def blocks():
    return built_blocks(blueprint_of(small_recipe(split_blocks=2), MadeUpBatches()))


@pytest.fixture
def savers(tmp_path: Path) -> Iterator[tuple[Saver, Saver]]:
    """Of the first and the last of two stages."""
    both = [
        Saver(SaveRules(tmp_path, 2, {}, keep=9), commits=last, saved_step=0)
        for last in (False, True)
    ]
    yield both[0], both[1]
    for saver in both:
        saver.close()


def newest(folder: Path) -> int | None:
    found = newest_whole(folder)
    return None if found is None else found.step


def test_the_last_stage_commits_when_it_hears_that_all_have_saved(tmp_path, savers, blocks) -> None:
    first, last = savers
    first.hear(EVERYTHING_SAVED)
    last.save(5, blocks[1:])
    last.finish()
    assert newest(tmp_path) is None
    first.save(5, blocks[:1])
    first.finish()
    assert first.saved_step == 5
    last.hear(first.saved_step)
    assert newest(tmp_path) == last.saved_step == 5


def test_the_best_stays_also_when_its_commit_comes_after_its_evaluation(tmp_path, blocks) -> None:
    """Accuracies by step: 1 before its commit, 2 after it, 3 and 4 while 2 is the best."""
    rules = SaveRules(tmp_path, 1, {}, keep=1, keeps_best=True)
    last = Saver(rules, commits=True, saved_step=0)
    left = []
    for step, accuracy in ((1, 0.5), (2, 0.75), (3, 0.5), (4, 0.25)):
        last.save(step, blocks[:1])
        if step == 2:
            last.hear(EVERYTHING_SAVED)
            last.finish()
        last.note_validation(ValidationRecord(step=step, accuracy=accuracy))
        last.hear(EVERYTHING_SAVED)
        last.finish()
        left.append(sorted(int(path.name[-1]) for path in tmp_path.iterdir()))
    last.close()
    assert left == [[1], [2], [2, 3], [2, 4]]


def test_only_the_last_stage_notes_accuracies(tmp_path, blocks) -> None:
    rules = SaveRules(tmp_path, 1, {}, keep=1, keeps_best=True)
    first = Saver(rules, commits=False, saved_step=0)
    first.save(1, blocks[:1])
    first.finish()
    first.note_validation(ValidationRecord(step=1, accuracy=0.5))
    first.close()
    assert not list(tmp_path.glob("*/validation.json"))


def test_what_is_heard_first_counts_at_the_end(tmp_path, savers, blocks) -> None:
    first, last = savers
    first.hear(EVERYTHING_SAVED)
    first.save(5, blocks[:1])
    first.finish()
    last.hear(first.saved_step)
    last.save(5, blocks[1:])
    last.finish()
    assert newest(tmp_path) == 5


def test_a_stage_has_saved_no_more_than_those_before_it(savers, blocks) -> None:
    _, last = savers
    assert last.saved_step == NOTHING_SAVED
    last.hear(0)
    last.save(5, blocks[1:])
    last.finish()
    assert last.saved_step == 0


def test_the_copy_is_made_when_the_mark_passes(tmp_path, blocks, monkeypatch) -> None:
    """Training goes on while the thread writes; here it cannot begin before."""
    go_on = threading.Event()
    saver = Saver(SaveRules(tmp_path, 2, {}, keep=9), commits=True, saved_step=0)
    saver._thread.submit(go_on.wait)
    saver.hear(EVERYTHING_SAVED)
    expected = {n: t.detach().clone() for b in blocks for n, t in b.modules.named_tensors()}
    saver.save(5, blocks)
    with torch.no_grad():
        for block in blocks:
            for _, parameter in block.modules.named_parameters():
                parameter.add_(1)
    assert saver.saved_step == 0
    go_on.set()
    saver.finish()
    saver.close()
    saved = TensorReader(tmp_path / "step-00000005").all_weights()
    assert all(torch.equal(saved[name], expected[name]) for name in expected)


def test_a_disk_that_is_full_is_an_error_at_the_next_chance(savers, blocks, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("ppll.checkpoints.saving.write_block", full)
    _, last = savers
    last.save(5, blocks[1:])
    with pytest.raises(OSError, match="no space left"):
        last.save(6, blocks[1:])
    assert last.saved_step == NOTHING_SAVED
