"""``ppll study``: many runs, one table."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ppll.cli.app import main
from ppll.cli.study import study_recipes
from ppll.config import Recipe
from ppll.errors import RunFolderError, UsageError
from ppll.run_folder import RunFolder
from ppll.studies import process as study_process
from ppll.studies import study
from ppll.studies.exports import as_csv, as_latex
from ppll.studies.outcome import Outcome
from ppll.studies.picture import draw_picture
from ppll.studies.runs import StudyRun, grid_points, left_out, list_runs, split_methods
from ppll.studies.table import Row, Spread, draw_rows, markdown, short_cells
from ppll.testing import Fault

TINY = [
    *("--set", "data.name=synthetic", "--set", "data.shape=[1,8,8]"),
    *("--set", "data.num_train=45", "--set", "data.num_test=10", "--set", "data.batch_size=10"),
    *("--set", "model.depth=14", "--set", "model.width=4", "--set", "split.blocks=3"),
]
SHORT = [*TINY, "--set", "train.max_steps=7"]
ENVIRONMENT = {
    "processor": "a chip",
    "num_cores": 2,
    "load_average": [0.0, 0.0, 0.0],
    "python": "3",
    "packages": {"torch": "2"},
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str
) -> tuple[int, str, str]:
    """Run a study in this process: exit code, what it printed, what it complained of."""
    monkeypatch.setattr(sys, "argv", ["ppll", "study", *args])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


def no_process(*args: Any, **options: Any) -> None:
    raise AssertionError("nothing was to be trained")


# --- what there is to run ------------------------------------------------------------------


def test_options_stay_with_their_method() -> None:
    texts = ["dgl,infopro:objective=contrast,auxiliary=linear", "own:Method:cuts=[1,2],x={a=1,b=2}"]
    assert split_methods(texts) == [
        "dgl",
        "infopro:objective=contrast,auxiliary=linear",
        "own:Method:cuts=[1,2],x={a=1,b=2}",
    ]


def test_a_study_lists_the_first_seed_of_every_row_first(tmp_path: Path) -> None:
    methods = ["backprop", "infopro:objective=contrast"]
    settings = ["train.seed=3", "runtime.stages=2"]
    runs = list_runs(["digits-resnet", "digits-vit"], methods, 2, settings, tmp_path)
    assert [(run.recipe_name, run.method, run.seed) for run in runs] == [
        (recipe, method, seed)
        for seed in (3, 4)
        for recipe in ("digits-resnet", "digits-vit")
        for method in methods
    ]
    assert runs[1].recipe.method.options == {"objective": "contrast"}
    assert runs[1].folder.path == tmp_path / "digits-resnet/infopro-objective=contrast/seed-3"
    assert [run.recipe.runtime.stages for run in runs[:2]] == [1, 2]


def test_a_grid_is_all_combinations() -> None:
    assert grid_points([]) == [()]
    assert grid_points(["optimizer.lr=0.1, 1", "split.cuts=[1,2],[3,4]"]) == [
        ("optimizer.lr=0.1", "split.cuts=[1,2]"),
        ("optimizer.lr=0.1", "split.cuts=[3,4]"),
        ("optimizer.lr=1", "split.cuts=[1,2]"),
        ("optimizer.lr=1", "split.cuts=[3,4]"),
    ]


@pytest.mark.parametrize("methods", [[], ["dgl:auxiliary=linear", "backprop"]])
def test_every_point_of_a_grid_is_a_row(methods: list[str], tmp_path: Path) -> None:
    points = grid_points(["optimizer.lr=0.1,0.2"])
    settings = ["optimizer.lr=9", "optimizer.momentum=0.5"]
    runs = list_runs(["digits-resnet"], methods, 2, settings, tmp_path, points)
    shown = methods or ["dgl"]
    assert [(run.seed, run.method, run.recipe.optimizer.lr) for run in runs] == [
        (seed, method, lr) for seed in (0, 1) for method in shown for lr in (0.1, 0.2)
    ]
    assert {run.recipe.optimizer.momentum for run in runs} == {0.5}
    folder = f"digits-resnet/{shown[0].replace(':', '-')},optimizer.lr=0.2/seed-0"
    assert runs[1].folder.path == tmp_path / folder
    assert runs[1].name == f"digits-resnet {shown[0]} optimizer.lr=0.2 seed 0"
    assert len({run.folder.path for run in runs}) == len(runs)


def test_another_method_does_not_get_the_recipes_options(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('extends = "digits-resnet"\n[method]\nname = "infopro"\nlambda1_last = 3.0\n')
    own, dgl, same = (
        list_runs([str(recipe)], methods, 1, [], tmp_path)[0].recipe.method
        for methods in ([], ["dgl"], ["infopro:lambda1_first=2.0"])
    )
    assert (own.name, own.options) == ("infopro", {"lambda1_last": 3.0})
    assert (dgl.name, dgl.options) == ("dgl", {})
    assert same.options == {"lambda1_last": 3.0, "lambda1_first": 2.0}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["digits-resnett"], "Did you mean 'digits-resnet'"),
        (["digits-resnet", "digits-resnet"], "recipe 'digits-resnet' is named 2 times"),
        (["digits-resnet", "--methods=dlg"], "Did you mean 'dgl'"),
        (["digits-resnet", "--methods=dgl,dgl"], "method 'dgl' is named 2 times"),
        (["digits-resnet", "--methods=dgl,,greedy"], "cannot read the method ''"),
        (["digits-resnet", "--methods=dgl,weight=2"], "cannot read the method 'dgl,weight=2'"),
        (["digits-resnet", "--methods=dgl:weight=2"], "method.weight"),
        (["digits-resnet", "--set=trian.epochs=1"], "Did you mean 'train'"),
        (["digits-resnet", "--grid=optimizer.lr"], "the grid 'optimizer.lr': write SECTION."),
        (["digits-resnet", "--grid=optimizer.lr=0.1,"], "cannot read the grid 'optimizer.lr=0.1,'"),
        (["digits-resnet", "--grid=optimizer.lr=1,1"], "'optimizer.lr=1' is named 2 times"),
        (["digits-resnet", *["--grid=optimizer.lr=1"] * 2], "'optimizer.lr' is named 2 times"),
        (["digits-resnet", "--grid=optimizer.lrr=1"], "Did you mean 'optimizer.lr'"),
        (["digits-resnet", "--grid=optimizer.lr=0.1,high"], "optimizer.lr"),
        (["digits-resnet", "--grid=train.seed=1,2"], "give --seeds instead"),
        (["digits-resnet", "--grid=method.name=dgl"], "give --methods instead"),
        (["digits-resnet", "--stages=9"], "ask for 1 to 4 stages"),
        (["digits-resnet", "--seeds=0"], "--seeds"),
        (["digits-resnet", "--parallel=0"], "--parallel"),
        (["digits-resnet", "--set=data.num_train=5"], "data.num_train"),
        ([], "RECIPE"),
    ],
)
def test_what_cannot_be_has_exit_code_2(
    args: list[str], message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(subprocess, "Popen", no_process)
    code, _, err = run_here(monkeypatch, capsys, *args, f"--out={tmp_path / 'study'}")
    assert code == 2, err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_folder_that_holds_something_else_is_refused(
    seed: int, tmp_path: Path, monkeypatch, capsys
) -> None:
    folder = tmp_path / f"digits-resnet/dgl/seed-{seed}"
    folder.mkdir(parents=True)
    (folder / "notes.txt").touch()
    code, _, err = run_here(monkeypatch, capsys, "digits-resnet", *SHORT, f"--out={tmp_path}")
    assert code == 2
    assert "holds files that are no run's" in err


def test_a_study_that_is_at_work_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    with study.hold(tmp_path):
        code, _, err = run_here(monkeypatch, capsys, "digits-resnet", *SHORT, f"--out={tmp_path}")
    assert code == 2
    assert f"process {os.getpid()}" in err
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="cannot make"), study.hold(tmp_path / "file"):
        pass


# --- the table -----------------------------------------------------------------------------


def outcome(seed: int, accuracy: float, exits: tuple[float | None, ...] = ()) -> Outcome:
    return Outcome(
        seed=seed,
        run_folder=f"r/m/seed-{seed}",
        validation_accuracy=None,
        test_accuracy=accuracy,
        exit_accuracy=(*exits, accuracy),
        average_accuracy=accuracy + 0.01,
        epoch_seconds=2.0 + seed,
        peak_memory_bytes=(seed + 1) * 2**20,
        num_stages=1,
        weights_sha256="",
    )


def rows_of(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, list[Outcome | None]], *settings: str
) -> list[Row]:
    """The rows of runs that came to this, by method; settings are for all but the first."""
    runs, outcomes = [], {}
    for index, (method, seeds) in enumerate(found.items()):
        recipe = Recipe().with_settings([f"method.name={method}", *(settings if index else ())])
        for seed, reached in enumerate(seeds):
            folder = RunFolder(Path(f"{method}/seed-{seed}"))
            seeded = recipe.with_settings([f"train.seed={seed}"])
            runs.append(StudyRun("mine", method, seeded, folder))
            outcomes[folder.path] = reached
    monkeypatch.setattr("ppll.studies.table.read_outcome", lambda run: outcomes[run.folder.path])
    return draw_rows(runs)


def test_a_row_holds_mean_spread_and_the_gap_by_seed(monkeypatch) -> None:
    found = {
        "backprop": [outcome(0, 0.9), outcome(1, 0.8), outcome(2, 0.1)],
        "dgl": [outcome(0, 0.7, (0.5, None)), outcome(1, 0.7, (0.6, None)), None],
    }  # in pairs of one seed: 0.7 - 0.9 and 0.7 - 0.8
    control, row = rows_of(monkeypatch, found, "split.blocks=3")
    assert control.gap_to_backprop is None
    assert (control.gap_to_backprop_stdev, control.run_gaps) == (None, (None, None, None))
    assert row.run_gaps == pytest.approx((-20, -10))
    assert row.gap_to_backprop == pytest.approx(-15)
    assert row.gap_to_backprop_stdev == pytest.approx(50**0.5)
    assert row.test_accuracy == Spread(pytest.approx(0.7), pytest.approx(0))
    assert row.exit_accuracy[0] == Spread(pytest.approx(0.55), pytest.approx(0.0707, abs=1e-4))
    assert row.exit_accuracy[1] is None
    assert row.average_accuracy is not None
    assert row.average_accuracy.mean == pytest.approx(0.71)
    assert (row.epoch_seconds, row.peak_memory_bytes) == (2.5, 2 * 2**20)
    assert [o.seed for o in row.runs] == [0, 1]
    assert row.seeds_missing == (2,)


@pytest.mark.parametrize("setting", ["data.batch_size=7", "model.name=vit", "optimizer.lr=1"])
def test_there_is_no_gap_to_another_recipe(setting: str, monkeypatch) -> None:
    found: dict[str, list[Outcome | None]] = {"backprop": [outcome(0, 0.9)], "dgl": [outcome(0, 1)]}
    assert rows_of(monkeypatch, found)[1].gap_to_backprop == pytest.approx(10)
    assert rows_of(monkeypatch, found, setting)[1].gap_to_backprop is None


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)])
def test_the_plainest_backprop_is_the_control(order, monkeypatch, tmp_path: Path) -> None:
    """Wherever it stands among the methods: one with more to learn from is no control."""
    named = ["backprop", "backprop:context=E", "dgl"]
    methods = [named[index] for index in order]
    runs = list_runs(["digits-resnet"], methods, 1, [], tmp_path)
    reached = {"backprop": 0.6, "backprop:context=E": 0.7, "dgl": 0.65}
    monkeypatch.setattr(
        "ppll.studies.table.read_outcome", lambda run: outcome(0, reached[run.method])
    )
    gaps = {row.method: row.gap_to_backprop for row in draw_rows(runs)}
    assert gaps["backprop"] is None
    assert gaps["dgl"] == pytest.approx(5)
    assert gaps["backprop:context=E"] == pytest.approx(10)


def test_a_control_that_reads_the_cuts_has_the_same(monkeypatch, tmp_path: Path) -> None:
    """Its segments learn from what the cuts say, so its accuracy is that of a point of the grid."""
    methods, points = ["backprop:context=E", "contsup"], grid_points(["split.blocks=2,4"])
    runs = list_runs(["digits-resnet"], methods, 1, [], tmp_path, points)
    monkeypatch.setattr(
        "ppll.studies.table.read_outcome", lambda run: outcome(0, 0.1 * run.recipe.split.blocks)
    )
    assert [row.gap_to_backprop for row in draw_rows(runs)] == [None, None, 0, 0]


def test_there_is_no_gap_without_a_common_seed(monkeypatch) -> None:
    found = {"backprop": [outcome(0, 0.9), None], "dgl": [None, outcome(1, 0.8)]}
    assert rows_of(monkeypatch, found)[1].gap_to_backprop is None


def test_memory_that_no_run_tells_is_none(monkeypatch) -> None:
    unknown = replace(outcome(0, 0.9), epoch_seconds=None, peak_memory_bytes=None)
    known = outcome(1, 0.9)
    both, alone = rows_of(monkeypatch, {"backprop": [unknown, known], "dgl": [unknown]})
    assert (both.epoch_seconds, both.peak_memory_bytes) == (3, 2 * 2**20)
    assert (alone.epoch_seconds, alone.peak_memory_bytes) == (None, None)
    assert short_cells([alone])[1][-3:] == ["", "", "1"]


def test_the_table_says_what_is_missing(monkeypatch) -> None:
    found = {"backprop": [outcome(0, 0.9)], "dgl": [outcome(0, 0.7, (0.5, None))], "greedy": [None]}
    rows = rows_of(monkeypatch, found)
    text = markdown(rows, ["ppll", "study"], ENVIRONMENT)
    assert "| mine | dgl | 70.00 | -20.00 | 50.00 | - | 71.00 | 2.00 | 1 | 1 | 1 |" in text
    assert "| mine | backprop | 90.00 |  |  |  | 91.00 | 2.00 | 1 | 1 | 1 |" in text
    assert "| mine | greedy | - |  |  |  | - |  |  |  | 0 of 1 |" in text
    assert "\n- mine greedy: 0\n" in text
    names, _, dgl, _ = short_cells(rows)
    assert dict(zip(names, dgl, strict=True))["exits"] == "50.0 -"


def test_the_gap_has_the_spread_of_its_pairs(monkeypatch) -> None:
    """Seeds go up and down together, so single accuracies spread more than their differences."""
    found = {
        "backprop": [outcome(0, 0.9), outcome(1, 0.8)],
        "dgl": [outcome(0, 0.88), outcome(1, 0.79), outcome(2, 0.5)],
    }
    rows = rows_of(monkeypatch, found)
    names, _, dgl = short_cells(rows)
    assert dict(zip(names, dgl, strict=True))["gap"] == "-1.50 ± 0.71"
    caption = markdown(rows, ["ppll", "study"], ENVIRONMENT)
    assert "| 72.33 ± 19.86 | -1.50 ± 0.71 |" in caption
    assert "mean ± sample standard\ndeviation of the differences by seed" in caption
    assert r" & -1.50 $\pm$ 0.71 & " in as_latex(rows)
    lines = list(csv.DictReader(as_csv(rows).splitlines()))
    assert [line["gap_to_backprop"][:5] for line in lines] == ["", "", "-2.00", "-1.00", ""]
    assert rows[1].to_dict()["gap_to_backprop_stdev"] == pytest.approx(0.5**0.5)


def test_what_no_run_learned_from_stands_before_the_test(monkeypatch) -> None:
    """So that a sweep is not read by its test set."""
    validated = [replace(outcome(seed, 0.9), validation_accuracy=0.8) for seed in (0, 1)]
    rows = rows_of(monkeypatch, {"backprop": validated, "dgl": [outcome(0, 0.7)]})
    names, backprop, dgl = short_cells(rows)
    assert names[:3] == ["method", "validation", "accuracy"]
    assert backprop[:3] == ["backprop", "80.00 ± 0.00", "90.00 ± 0.00"]
    assert dgl[:3] == ["dgl", "-", "70.00"]
    text = markdown(rows, ["ppll", "study"], ENVIRONMENT)
    assert "| recipe | method | validation | final output | to backprop | all" in text
    assert "what is chosen is chosen by it, not by the test set" in text
    assert " & validation & final output & " in as_latex(rows)
    lines = list(csv.DictReader(as_csv(rows).splitlines()))
    assert [line["validation_accuracy"] for line in lines] == ["0.8", "0.8", ""]
    tree = rows[0].to_dict()
    assert tree["validation_accuracy"] == {"mean": 0.8, "stdev": 0.0}
    assert tree["runs"][0]["validation_accuracy"] == 0.8


def test_nobody_hears_of_validation_where_there_is_none(monkeypatch) -> None:
    rows = rows_of(monkeypatch, {"dgl": [outcome(0, 0.7)]})
    shown = [*short_cells(rows)[0], markdown(rows, ["ppll"], ENVIRONMENT), as_csv(rows)]
    assert "alidation" not in " ".join(shown)


def test_what_a_grid_sets_stands_in_columns(monkeypatch, tmp_path: Path) -> None:
    points = grid_points(["optimizer.lr=0.1,0.2", "optimizer.nesterov=true"])
    runs = list_runs(["digits-resnet"], ["backprop", "dgl"], 1, [], tmp_path, points)
    monkeypatch.setattr(
        "ppll.studies.table.read_outcome",
        lambda run: outcome(0, run.recipe.optimizer.lr) if run.method == "dgl" else outcome(0, 0.5),
    )
    rows = draw_rows(runs)
    names, *_, dgl = short_cells(rows)
    assert names[:4] == ["method", "optimizer.lr", "optimizer.nesterov", "accuracy"]
    assert dgl[:5] == ["dgl", "0.2", "True", "20.00", "-30.00"]  # to the same point of the grid
    text = markdown(rows, ["ppll", "study"], ENVIRONMENT)
    assert "| digits-resnet | dgl | 0.1 | True | 10.00 | -40.00 |" in text
    line = list(csv.DictReader(as_csv(rows).splitlines()))[2]
    assert (line["method"], line["optimizer.lr"], line["test_accuracy"]) == ("dgl", "0.1", "0.1")
    assert rows[0].to_dict()["grid"] == {"optimizer.lr": 0.1, "optimizer.nesterov": True}
    assert rows[0].name == "backprop optimizer.lr=0.1 optimizer.nesterov=True"


def test_runs_are_lines_of_csv(monkeypatch) -> None:
    found = {"backprop": [outcome(0, 0.9)], "dgl": [None, outcome(1, 0.7, (0.5, None))]}
    lines = list(csv.DictReader(as_csv(rows_of(monkeypatch, found)).splitlines()))
    assert [(line["method"], line["seed"]) for line in lines] == [("backprop", "0"), ("dgl", "1")]
    assert [lines[1][f"exit_{index}"] for index in range(2)] == ["0.5", ""]
    assert lines[0]["exit_0"] == ""
    assert float(lines[1]["test_accuracy"]) == 0.7
    assert lines[1]["run_folder"] == "r/m/seed-1"


def test_the_table_is_latex(monkeypatch) -> None:
    found = {"dgl": [outcome(0, 0.9, (0.5,)), outcome(1, 0.8, (0.5,))]}
    (row,) = rows_of(monkeypatch, found)
    begin, _, names, _, line, *_, end = as_latex([replace(row, method="a_b:c=1")]).splitlines()
    assert begin == r"\begin{tabular}{llrrrrrrrr}"
    assert names.startswith("recipe & method & final output & to backprop & exit 0 & ")
    assert line.startswith(r"mine & a\_b:c=1 & 85.00 $\pm$ 7.07 &  & 50.00 $\pm$ 0.00 & ")
    assert line.count("&") == names.count("&") == 9
    assert end == r"\end{tabular}"


def test_runs_that_the_tables_leave_out_are_named(tmp_path: Path) -> None:
    runs = list_runs(["digits-resnet"], ["dgl"], 1, [], tmp_path)
    for name in ("dgl/seed-0", "dgl/seed-1", "greedy/seed-0"):
        (tmp_path / "digits-resnet" / name).mkdir(parents=True)
        (tmp_path / "digits-resnet" / name / "config.toml").touch()
    assert left_out(runs, tmp_path) == ["digits-resnet/greedy"]


def test_a_picture_is_drawn_of_whatever_there_is(tmp_path: Path, monkeypatch) -> None:
    found = {"backprop": [outcome(0, 0.9), outcome(1, 0.8)], "dgl": [outcome(0, 0.7, (0.5, None))]}
    rows = rows_of(monkeypatch, {**found, "greedy": [None]})
    other = replace(rows[0], recipe="yours")
    for name, drawn in (("all", [*rows, other]), ("nothing", rows[-1:])):
        draw_picture(drawn, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


# --- real runs -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.processes
def test_a_study_trains_everything_once(tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "study"
    args = ("digits-resnet", "--methods=backprop,dgl", "--seeds=2", "--stages=2", f"--out={out}")
    code, printed, err = run_here(monkeypatch, capsys, *args, *SHORT, "--parallel=2")
    assert code == 0, err
    assert "4 of 4 through" in err
    assert "backprop" in printed
    tree = json.loads((out / "study.json").read_text())
    backprop, dgl = tree["rows"]
    assert [len(row["exit_accuracy"]) for row in tree["rows"]] == [1, 3]
    assert [row["num_stages"] for row in tree["rows"]] == [1, 2]
    assert dgl["gap_to_backprop"] is not None
    assert tree["environment"]["packages"]["torch"]
    assert tree["command"][:3] == ["ppll", "study", "digits-resnet"]
    assert backprop["average_accuracy"] == backprop["test_accuracy"]
    for row in tree["rows"]:
        assert row["seeds_missing"] == []
        assert [run["seed"] for run in row["runs"]] == [0, 1]
        for run in row["runs"]:
            result = json.loads((out / run["run_folder"] / "result.json").read_text())
            exits = json.loads((out / run["run_folder"] / "exits.json").read_text())
            assert run["weights_sha256"] == result["weights_sha256"]
            assert run["exit_accuracy"] == result["exit_accuracy"] == exits["exit_accuracy"]
            assert run["epoch_seconds"] == pytest.approx(result["train_seconds"] * 5 / 7)
    assert "| digits-resnet | dgl |" in (out / "study.md").read_text()
    assert (out / "study.png").read_bytes().startswith(b"\x89PNG")
    assert "study.json, study.md, study.csv, study.tex, study.png and all runs" in " ".join(
        printed.split()
    )

    # Once more: all is there. Without matplotlib there is no picture, and somebody says so.
    monkeypatch.setattr(subprocess, "Popen", no_process)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    monkeypatch.delitem(sys.modules, "ppll.studies.picture")
    (out / "study.png").unlink()
    code, printed, err = run_here(monkeypatch, capsys, *args, *SHORT, "--json")
    assert code == 0, err
    assert json.loads(printed)["rows"] == tree["rows"]
    assert "4 runs: 4 finished before, 0 to train" in err
    assert "pip install 'matplotlib>=3.8'" in " ".join(err.split())
    assert not (out / "study.png").exists()

    code, _, err = run_here(monkeypatch, capsys, *args, *SHORT, "--set=optimizer.lr=0.5")
    assert code == 2
    assert "optimizer.lr (was 0.05, is 0.5)" in err


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_that_fails_is_named_and_goes_on_later(tmp_path: Path, monkeypatch, capsys) -> None:
    """One recipe fails after its checkpoint of step 4, then ends as if it had not."""
    (tmp_path / "long.toml").write_text(
        'extends = "digits-resnet"\n[checkpoint]\nevery_steps = 2\n'
    )
    (tmp_path / "short.toml").write_text('extends = "digits-resnet"\n[train]\nmax_steps = 4\n')
    recipes = [str(tmp_path / f"{name}.toml") for name in ("long", "short")]
    args = [*recipes, "--seeds=1", "--set=train.epochs=2", *TINY]
    monkeypatch.setenv("PPLL_FAULT", Fault(rank=0, step=6).to_environment()["PPLL_FAULT"])
    code, printed, err = run_here(monkeypatch, capsys, *args, f"--out={tmp_path / 'a'}")
    assert code == 1
    assert "1 of 2 runs failed:\nlong dgl seed 0: WorkerError: rank 0 (stage 0, block" in err
    assert "0 of 1" in printed
    tree = json.loads((tmp_path / "a" / "study.json").read_text())
    assert [row["seeds_missing"] for row in tree["rows"]] == [[0], []]

    monkeypatch.delenv("PPLL_FAULT")
    sha = {}
    for out in ("a", "b"):
        code, _, err = run_here(monkeypatch, capsys, *args, f"--out={tmp_path / out}", "--quiet")
        assert (code, err) == (0, "")
        rows = json.loads((tmp_path / out / "study.json").read_text())["rows"]
        sha[out] = [run["weights_sha256"] for row in rows for run in row["runs"]]
    assert sha["a"] == sha["b"]
    history = (tmp_path / "a/long/dgl/seed-0/history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in history] == [0, 4]


@pytest.mark.slow
@pytest.mark.processes
def test_a_sweep_goes_on_and_is_read_by_its_validation_part(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    args = ["digits-resnet", "--seeds=1", *SHORT, "--set=data.validation=10"]
    args += [f"--out={tmp_path}", "--json"]
    trees = []
    for values in ("0.1", "0.1,0.2"):
        code, printed, err = run_here(monkeypatch, capsys, *args, f"--grid=optimizer.lr={values}")
        assert code == 0, err
        trees.append(json.loads(printed)["rows"])
    assert "2 runs: 1 finished before, 1 to train" in err
    assert trees[1][0] == trees[0][0]
    assert [row["grid"] for row in trees[1]] == [{"optimizer.lr": 0.1}, {"optimizer.lr": 0.2}]
    assert None not in [row["validation_accuracy"] for row in trees[1]]


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_gets_the_overrides_of_its_blocks(tmp_path: Path, monkeypatch, capsys) -> None:
    overrides = ["--set=schedule.blocks.0.warmup_epochs=1", "--set=optimizer.blocks.1.lr=0.01"]
    args = ["digits-resnet", "--seeds=1", *SHORT, *overrides, f"--out={tmp_path / 'study'}"]
    code, _, err = run_here(monkeypatch, capsys, *args)
    assert code == 0, err
    recipe = RunFolder(tmp_path / "study/digits-resnet/dgl/seed-0").read_recipe()
    assert recipe.schedule.of_block(0).warmup_epochs == 1
    assert recipe.optimizer.blocks[1].lr == 0.01


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"train": {"epochs": 0}}\n', "RecipeError: train.epochs"),
        (b'{"trian": {}}\n', "RecipeError: unknown key 'trian'"),
    ],
)
def test_a_recipe_that_cannot_be_is_named_in_the_log(
    line: bytes, message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line)))
    assert study_process.main(str(tmp_path)) == 1
    assert (study.named_error(capsys.readouterr().err) or "").startswith(message)


@pytest.mark.parametrize(
    ("log", "error"),
    [
        ("a warning\nWorkerError: rank 0\nTraceback\nValueError: x\n", "WorkerError: rank 0"),
        ("Traceback\n  File\nppll.errors.RecipeError: no.\n", "RecipeError: no."),
        ("Traceback\n  File\nMemoryError\n", "MemoryError"),
        ("Traceback\n  raise ValueError: x\n", None),
    ],
)
def test_the_first_error_of_a_log_is_the_cause(log: str, error: str | None) -> None:
    assert study.named_error(log) == error


@pytest.mark.slow
@pytest.mark.processes
def test_a_study_that_is_stopped_leaves_nothing_behind_and_goes_on(tmp_path: Path) -> None:
    """Killed at first, then interrupted: all runs have saved themselves and are gone."""
    out = tmp_path / "study"
    command = [
        *(sys.executable, "-m", "ppll", "study", "digits-resnet", "--seeds=2", "--parallel=2"),
        *("--set=train.epochs=100000", "--set=runtime.log_every_steps=1"),
        *("--stages=2", *TINY, f"--out={out}"),
    ]
    runs = [RunFolder(out / f"digits-resnet/dgl/seed-{seed}") for seed in (0, 1)]
    for starts, number, code in ((1, signal.SIGKILL, -9), (2, signal.SIGINT, 130)):
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        for run in runs:
            wait_for_steps(process, run, starts=starts)
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=60)
        wait_until_gone(process.pid)
        assert process.returncode == code, err
        for run in runs:
            result = json.loads(run.result.read_text())
            assert (run.checkpoints / f"step-{result['step']:08d}" / "manifest.json").exists()
    assert "interrupted with 2 of 2 runs left" in err
    for run in runs:
        first, second = (json.loads(line) for line in run.history.read_text().splitlines())
        assert first["step"] == 0 < second["step"]


def wait_for_steps(process: subprocess.Popen[str], run: RunFolder, *, starts: int) -> None:
    """Until a run has begun so often, and has learned something since then."""
    while not run.history.exists() or len(run.history.read_text().splitlines()) < starts:
        assert process.poll() is None
        time.sleep(0.05)
    metrics = run.metric_parts / "rank-1.jsonl"
    size = metrics.stat().st_size if metrics.exists() else 0
    while not metrics.exists() or metrics.stat().st_size <= size:
        assert process.poll() is None
        time.sleep(0.05)


def wait_until_gone(session: int, timeout_s: float = 20.0) -> None:
    """Fail when a process of the session is still there after the time."""
    deadline = time.monotonic() + timeout_s
    while left := [pid for pid in Path("/proc").glob("[0-9]*") if session_of(pid) == session]:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)


def session_of(process: Path) -> int | None:
    try:
        state, *fields = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(fields[2])


@pytest.mark.slow
@pytest.mark.processes
def test_a_study_mends_what_is_damaged(tmp_path: Path, monkeypatch, capsys) -> None:
    args = ["digits-resnet", "--seeds=1", *SHORT, f"--out={tmp_path}"]
    assert run_here(monkeypatch, capsys, *args)[0] == 0
    run = tmp_path / "digits-resnet/dgl/seed-0"
    before = json.loads((tmp_path / "study.json").read_text())["rows"]
    exits = (run / "exits.json").read_bytes()
    (run / "exits.json").write_text("{}")
    code, _, err = run_here(monkeypatch, capsys, *args)
    assert code == 0, err
    assert (run / "exits.json").read_bytes() == exits
    assert json.loads((tmp_path / "study.json").read_text())["rows"] == before

    (run / "result.json").write_text("{")
    code, _, err = run_here(monkeypatch, capsys, *args)
    assert code == 2
    assert "remove it" in err
    (run / "result.json").unlink()
    assert run_here(monkeypatch, capsys, *args)[0] == 0
    after = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert after[0]["runs"][0]["weights_sha256"] == before[0]["runs"][0]["weights_sha256"]


@pytest.mark.parametrize("ending", ["json", "md"])
def test_a_full_disk_leaves_the_tables_as_they_were(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "check_runs", lambda runs: [])
    study_recipes(["digits-resnet"], seeds=1, out=tmp_path, quiet=True)
    before = (tmp_path / f"study.{ending}").read_text()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"cannot write .*study.*: No space left"):
        study_recipes(["digits-resnet"], seeds=2, out=tmp_path, quiet=True)
    assert (tmp_path / f"study.{ending}").read_text() == before


def test_a_study_is_not_for_torchrun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    with pytest.raises(UsageError, match="run it without torchrun"):
        study_recipes(["digits-resnet"], out=tmp_path / "study")
