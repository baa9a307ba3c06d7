"""A run's folder: made once, opened again."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest

from ppll.data_facts import DataFacts
from ppll.errors import RunFolderError
from ppll.recipe_files import load_recipe
from ppll.run_folder import RunFolder, default_folder, take_free

RECIPE = load_recipe("digits-vit", ["train.seed=3"])
FACTS = DataFacts((1, 8, 8), 10, 20, mean=(0.5,), std=(0.25,))


def make(path: Path) -> RunFolder:
    folder = RunFolder.make(path)
    folder.describe(RECIPE, FACTS)
    return folder


def test_a_new_folder_says_what_the_run_is(tmp_path: Path) -> None:
    made = make(tmp_path / "runs" / "one")
    folder = RunFolder.open(tmp_path / "runs" / "one")
    assert folder == made
    assert folder.read_recipe() == RECIPE
    assert folder.read_facts() == FACTS
    environment = json.loads(folder.environment.read_text())
    assert environment["packages"]["pillow"] == metadata.version("pillow")
    assert "method_sha256" not in environment
    assert folder.checkpoints.is_dir()
    assert folder.logs.is_dir()


@pytest.mark.parametrize("were_tokens", [False, True])
def test_facts_of_before_are_read(were_tokens: bool, tmp_path: Path) -> None:
    """Then ``holds_tokens`` said both that samples were tokens and that each had a target."""
    folder = make(tmp_path)
    facts = {"input_shape": [128], "num_classes": 256, "steps_per_epoch": 20, "mean": None}
    folder.facts.write_text(json.dumps({**facts, "holds_tokens": were_tokens}))
    found = DataFacts((128,), 256, 20)
    if were_tokens:
        found = DataFacts((128,), 256, 20, num_tokens=256, predicts_tokens=True)
    assert folder.read_facts() == found


@pytest.mark.parametrize("lost", [0, 1, 5])
def test_a_start_that_was_cut_off_in_its_line_takes_no_other_with_it(
    lost: int, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    for step in (0, 3):
        folder.note(step=step)
    folder.history.write_bytes(folder.history.read_bytes()[: -lost or None])
    folder.note(step=6)
    assert folder.read_start_steps() == ([0, 6] if lost > 1 else [0, 3, 6])


def test_a_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RunFolder.make(Path("run")).path == tmp_path / "run"


def test_a_folder_that_holds_a_run_or_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"already holds a run: .*--out"):
        make(tmp_path / "run").check_free()
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(RunFolderError, match=r"holds files .*: choose another .* new or empty\.$"):
        RunFolder(tmp_path).check_free()
    with pytest.raises(RunFolderError, match=r"notes is a file: choose another folder with --out"):
        RunFolder(tmp_path / "notes").check_free()
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_folder_with_nothing_in_it_may_be_used(tmp_path: Path) -> None:
    RunFolder(tmp_path).check_free()
    folder = RunFolder.make(tmp_path)
    (tmp_path / "lock").write_text("1")  # as of a start that was killed at once
    folder.check_free()


def test_other_code_of_an_own_method_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("mine")
    module.__file__ = str(tmp_path / "mine.py")
    monkeypatch.setitem(sys.modules, "mine", module)
    recipe = RECIPE.with_settings(["method.name=mine:Mine"])
    folder = RunFolder.make(tmp_path / "run")
    (tmp_path / "mine.py").write_text("first")
    assert folder.describe(recipe, FACTS) == folder.describe(recipe, FACTS) == []
    (tmp_path / "mine.py").write_text("second")
    (changed,) = folder.describe(recipe, FACTS)
    digest = hashlib.sha256(b"second").hexdigest()
    assert changed.startswith("method_sha256 was ")
    assert changed.endswith(f"is '{digest}'")


def test_another_environment_is_noticed(tmp_path: Path) -> None:
    folder = RunFolder.make(tmp_path)
    assert folder.describe(RECIPE, FACTS) == folder.describe(RECIPE, FACTS) == []
    environment = json.loads(folder.environment.read_text())
    environment["packages"]["torch"] = "2.0"
    environment["processor"] = "another"
    folder.environment.write_text(json.dumps(environment))
    differences = folder.describe(RECIPE, FACTS)
    assert [text.partition(",")[0] for text in differences] == [
        "processor was 'another'",
        "torch was '2.0'",
    ]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot make the run folder"):
        RunFolder.make(tmp_path / "file" / "run")


def test_what_is_no_run_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is not a run folder: it has no config\.toml\.$"):
        RunFolder.open(tmp_path)
    with pytest.raises(RunFolderError, match=r"^there is no run folder \S*/nothere\.$"):
        RunFolder.open(tmp_path / "nothere")
    with pytest.raises(RunFolderError, match=r"^there is no run folder \S*/xxx+\.$"):
        RunFolder.open(tmp_path / ("x" * 300))


def test_runs_that_may_be_meant_are_named(tmp_path: Path) -> None:
    for age, name in enumerate("abcd"):
        folder = make(tmp_path / name)
        os.utime(folder.config, (1000 - age, 1000 - age))
    newest = ", ".join(str(tmp_path / name) for name in "abc")
    for path, beginning in (
        (tmp_path, "is not a run folder: it has no config.toml"),
        (tmp_path / "nothere", "there is no run folder"),
    ):
        with pytest.raises(
            RunFolderError, match=f"; the newest runs there are {newest}\\.$"
        ) as caught:
            RunFolder.open(path)
        assert beginning in str(caught.value)


def test_a_study_is_no_run_but_says_where_its_tables_and_runs_are(tmp_path: Path) -> None:
    run = make(tmp_path / "digits-resnet" / "dgl" / "seed-0").path
    (tmp_path / "study.json").touch()
    with pytest.raises(RunFolderError, match=r"is a study, not a run: .*study\.md") as caught:
        RunFolder.open(tmp_path)
    assert f"the newest runs there are {run}." in str(caught.value)


def test_a_result_is_written(tmp_path: Path) -> None:
    folder = make(tmp_path)
    folder.write_result({"step": 7})
    assert json.loads(folder.result.read_text()) == {"step": 7}


def test_starts_of_one_second_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "now")
    taken = [take_free(default_folder("some/mine.toml")) for _ in range(3)]
    assert [str(path) for path in taken] == ["runs/mine-now", "runs/mine-now-2", "runs/mine-now-3"]
    assert all(path.is_dir() for path in taken)


def test_a_default_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(RunFolderError, match=r"cannot make the run folder .*/runs/a"):
        take_free(tmp_path / "runs" / "a")
