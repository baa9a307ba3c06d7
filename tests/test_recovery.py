"""Which checkpoint a run goes on from; ``test_torn.py`` damages them in every way."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import torch

from ppll.checkpoints.checkpoint import commit, is_committed, step_folder, write_block
from ppll.checkpoints.recovery import newest_whole, prune, set_aside
from ppll.claim import Claim, locked
from ppll.errors import CheckpointError, RunFolderError


def write(checkpoints: Path, step: int, *, committed: bool = True) -> Path:
    folder = step_folder(checkpoints, step)
    write_block(folder, step, 0, {"w": torch.full((2,), float(step))}, {})
    if committed:
        commit(folder, step, 1, {})
    return folder


def steps(checkpoints: Path) -> list[str]:
    return sorted(path.name.removeprefix("step-") for path in checkpoints.iterdir())


def test_the_newest_committed_checkpoint_is_taken(tmp_path: Path) -> None:
    assert newest_whole(tmp_path) is None
    write(tmp_path, 3)
    write(tmp_path, 20)
    write(tmp_path, 30, committed=False)
    found = newest_whole(tmp_path)
    assert found is not None
    assert found.step == 20
    assert [text.partition(" has ")[2] for text in found.passed_over] == [
        "no manifest: it was not finished."
    ]


def test_a_long_run_s_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    write(tmp_path, 99_999_999)
    write(tmp_path, 100_000_000)
    found = newest_whole(tmp_path)
    assert found is not None
    assert found.step == 100_000_000


def test_a_checkpoint_under_another_step_s_name_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, 3)
    write(tmp_path, 4).rename(step_folder(tmp_path, 9))
    found = newest_whole(tmp_path)
    assert found is not None
    assert found.step == 3
    assert "its manifest is of step 4" in found.passed_over[0]


def test_what_is_newer_is_set_aside_and_what_is_unfinished_goes(tmp_path: Path) -> None:
    for step, committed in ((0, True), (1, False), (3, True), (6, True), (9, False)):
        write(tmp_path, step, committed=committed)
    for _ in range(2):
        set_aside(tmp_path, 3)
        assert steps(tmp_path) == ["00000000", "00000003", "00000006.damaged"]
    found = newest_whole(tmp_path)
    assert found is not None
    assert found.step == 3


def test_pruning_keeps_the_first_the_newest_and_what_is_being_written(tmp_path: Path) -> None:
    for step in (0, 3, 6, 9):
        write(tmp_path, step)
    write(tmp_path, 12, committed=False)
    prune(tmp_path, keep=2)
    assert steps(tmp_path) == ["00000000", "00000006", "00000009", "00000012"]


def test_what_cannot_be_removed_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where another process of the host reads it over a network, or removes it as well."""

    def refuse(path: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    for step, committed in ((0, True), (3, False), (6, True), (9, True)):
        write(tmp_path, step, committed=committed)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    set_aside(tmp_path, 9)
    prune(tmp_path, 1)
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot remove {step_folder(tmp_path, step)}, which is no checkpoint any more: "
        f"[Errno {errno.ENOTEMPTY}] Directory not empty: '{step_folder(tmp_path, step)}'"
        for step in (3, 6)
    ]
    assert [step for step in (0, 6, 9) if is_committed(step_folder(tmp_path, step))] == [0, 9]


def test_a_claim_is_gone_when_another_start_takes_it(tmp_path: Path) -> None:
    first = Claim.take(tmp_path)
    first.check()
    second = Claim.take(tmp_path)
    second.check()
    with pytest.raises(CheckpointError, match="another start of this run has taken over"):
        first.check()


def test_one_launcher_at_a_time(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(RunFolderError, match=r"process \d+ trains in .* --out"),
        locked(tmp_path),
    ):
        pytest.fail("both may train")
    with locked(tmp_path):
        pass


def test_a_run_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(RunFolderError, match=r"cannot write into .*gone: No such file"),
        locked(tmp_path / "gone"),
    ):
        pytest.fail("it is not there")
