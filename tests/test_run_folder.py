"""A run's folder: made once, opened again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ppll.config import load_recipe
from ppll.errors import RunFolderError
from ppll.run_folder import RunFolder

RECIPE = load_recipe("digits-vit", ["train.seed=3"])


def test_a_new_folder_says_what_the_run_is(tmp_path: Path) -> None:
    made = RunFolder.create(tmp_path / "runs" / "one", RECIPE)
    folder = RunFolder.open(tmp_path / "runs" / "one")
    assert folder == made
    assert folder.read_recipe() == RECIPE
    assert {"python", "packages"} <= set(json.loads(folder.environment.read_text()))
    assert folder.checkpoints.is_dir()
    assert folder.logs.is_dir()


def test_a_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RunFolder.create(Path("run"), RECIPE).path == tmp_path / "run"


def test_a_folder_that_holds_a_run_or_files_is_refused(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", RECIPE)
    with pytest.raises(RunFolderError, match=r"already holds a run: .*--out"):
        RunFolder.create(tmp_path / "run", RECIPE)
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(RunFolderError, match="already holds files"):
        RunFolder.create(tmp_path, RECIPE)
    assert (tmp_path / "notes").read_text() == "mine"


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    assert RunFolder.create(tmp_path, RECIPE).config.is_file()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot make the run folder"):
        RunFolder.create(tmp_path / "file" / "run", RECIPE)


def test_what_is_no_run_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is not a run folder: it has no config\.toml"):
        RunFolder.open(tmp_path)


def test_a_result_is_written(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, RECIPE)
    folder.write_result({"step": 7})
    assert json.loads(folder.result.read_text()) == {"step": 7}
