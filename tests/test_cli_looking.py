"""``ppll trace``, as a shell sees it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import ppll
from ppll.cli.app import main
from tests.traces import made_up_run, span, write_start

RECIPE = {
    "data": {
        **{"name": "synthetic", "shape": [1, 8, 8], "num_train": 60, "num_test": 20},
        "batch_size": 20,
    },
    "model": {"name": "resnet", "depth": 14, "width": 4},
    "split": {"blocks": 2},
    "train": {"epochs": 1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    ppll.Trainer(RECIPE, out=out).fit()
    return out


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str | Path
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["ppll", *map(str, args)])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_a_run_is_summed_up_in_80_columns(run: Path, monkeypatch, capsys) -> None:
    code, out, err = command(monkeypatch, capsys, "trace", run)
    assert code == 0, err
    assert out.split()[:4] == ["stage", "blocks", "work", "busy"]
    assert "block 1: forward" in out
    *summary, timeline = out.splitlines()
    assert max(map(len, summary)) <= 80
    assert timeline == f"{run / 'timeline.json'}: every span; open it in https://ui.perfetto.dev"


def test_the_summary_is_json(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    code, out, err = command(monkeypatch, capsys, "trace", run, "--json")
    assert code == 0, err
    tree = json.loads(out)
    (row,) = tree["rows"]
    assert tree["bottleneck"] == row["stage"] == 0
    assert 0 < row["busy"] <= 1
    assert [block["block"] for block in row["blocks"]] == [0, 1]
    file = tmp_path / "trace.json"
    assert command(monkeypatch, capsys, "trace", run, "--json", file)[0] == 0
    assert json.loads(file.read_text()) == tree


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_picture_is_drawn(ending: str, run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    target = tmp_path / f"timeline.{ending}"
    code, _, err = command(monkeypatch, capsys, "trace", run, "--picture", target)
    assert code == 0, err
    assert target.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


def test_what_cannot_be_looked_at_is_refused(
    run: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    code, _, err = command(monkeypatch, capsys, "trace", tmp_path)
    assert (code, "is not a run folder" in err) == (2, True)
    code, _, err = command(monkeypatch, capsys, "trace", run, "--picture", tmp_path / "a.gif")
    assert (code, "give it the ending .png, .svg or .pdf" in err) == (2, True)
    code, _, err = command(
        monkeypatch, capsys, "trace", run, "--picture", tmp_path / "no" / "a.png"
    )
    assert (code, "cannot write" in err) == (2, True)
    for steps, cause in ((0, "train with track.trace_steps above 0"), (9, "has begun to train")):
        (tmp_path / "config.toml").write_text(f"[track]\ntrace_steps = {steps}")
        code, _, err = command(monkeypatch, capsys, "trace", tmp_path)
        assert (code, cause in err) == (2, True)


def test_a_run_that_has_only_begun_says_so(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    begun = Path(shutil.copytree(run, tmp_path / "begun"))
    trace = begun / "traces" / "rank-0.jsonl"
    trace.write_text("".join(trace.read_text().splitlines(keepends=True)[:2]))
    code, _, err = command(monkeypatch, capsys, "trace", begun)
    assert (code, "has written down no batch yet: look again" in err) == (2, True)


LEARNED = span("forward", 1, 2, block=0), span("learn", 2, 4, block=0)


@pytest.mark.parametrize("later", ["tested", "failed", "begun"])
def test_a_start_that_trained_nothing_hides_none_that_did(
    later: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    run = made_up_run(tmp_path / "run")
    write_start(run, "a", 0, *LEARNED)
    tested = span("forward", 11, 12, block=0), span("evaluate", 12, 13, block=0)
    spans = {"tested": tested, "failed": (span("start", 10, 11),), "begun": ()}[later]
    write_start(run, "b", 0, *spans, wall_s=9.0, monotonic_s=9.0, ended=later != "begun")
    code, out, err = command(monkeypatch, capsys, "trace", run)
    assert code == 0, err
    assert "block 0: forward 1000.00 ms, learn 2000.00 ms" in out
    which = "Of start 0: start 1, the newest, has written down no batch that it learned from."
    assert which in out
    tree = json.loads(command(monkeypatch, capsys, "trace", run, "--json")[1])
    assert (tree["start"], tree["newest_start"]) == (0, 1)
    assert command(monkeypatch, capsys, "report", run)[0] == 0
    assert which in (run / "report.html").read_text()


def test_the_newest_start_that_trained_needs_no_word(tmp_path: Path, monkeypatch, capsys) -> None:
    run = made_up_run(tmp_path / "run")
    write_start(run, "a", 0, *LEARNED)
    write_start(run, "b", 0, *LEARNED, wall_s=9.0, monotonic_s=9.0)
    assert "Of start" not in command(monkeypatch, capsys, "trace", run)[1]
    tree = json.loads(command(monkeypatch, capsys, "trace", run, "--json")[1])
    assert (tree["start"], tree["newest_start"]) == (1, 1)


def test_a_start_that_ended_before_its_first_batch_is_not_to_be_waited_for(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    run = made_up_run(tmp_path / "run")
    write_start(run, "a", 0, span("start", 10, 11))
    code, _, err = command(monkeypatch, capsys, "trace", run)
    assert (code, "If it has ended, it came to no batch" in err) == (2, True)


def test_a_picture_without_matplotlib_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "ppll.tracing.picture", None)
    code, _, err = command(monkeypatch, capsys, "trace", run, "--picture", tmp_path / "a.png")
    assert (code, "pip install 'matplotlib>=3.8'" in err) == (2, True)


def test_setting_that_cannot_be_is_refused(monkeypatch, capsys) -> None:
    code, _, err = command(
        monkeypatch, capsys, "train", "digits-resnet", "--dry-run", "--set", "track.trace_steps=-1"
    )
    assert (code, "track.trace_steps" in err, "found -1" in err) == (2, True, True)


def test_stages_whose_first_replica_left_nothing_are_known_by_another(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    run = made_up_run(tmp_path / "run")
    learned = span("forward", 1, 2, block=1), span("learn", 2, 4, block=1)
    write_start(run, "a", 2, *LEARNED, blocks=[0], stage=0, replica=1)
    write_start(run, "a", 3, *learned, blocks=[1], stage=1, replica=1)
    write_start(run, "a", 5, *learned, blocks=[1], stage=1, replica=2)
    code, out, err = command(monkeypatch, capsys, "report", run)
    assert code == 0, err
    assert "stage 1, block 1" in (run / "report.html").read_text()
    code, out, err = command(monkeypatch, capsys, "trace", run, "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [(row["stage"], row["replicas"]) for row in rows] == [(0, 1), (1, 2)]


def test_what_replicas_wait_for_has_a_column(tmp_path: Path, monkeypatch, capsys) -> None:
    run = made_up_run(tmp_path / "run")
    waits = (
        span("receive wait", 4, 5),
        span("send wait", 5, 6),
        span("average wait", 6, 10, block=0),
    )
    write_start(run, "a", 0, *LEARNED, *waits)
    _, out, _ = command(monkeypatch, capsys, "trace", run)
    head, (row, *_) = out.split("block 0:")[0], [x for x in out.splitlines() if "%" in x]
    assert max(map(len, head.splitlines())) <= 80
    assert "average wait" in head
    assert [word for word in row.split() if word.endswith("%")] == ["33%", "11%", "11%", "44%"]
    command(monkeypatch, capsys, "report", run)
    assert "average wait" in (run / "report.html").read_text()
    alone = made_up_run(tmp_path / "alone")
    write_start(alone, "a", 0, *LEARNED)
    assert "average" not in command(monkeypatch, capsys, "trace", alone)[1]


def test_a_stage_is_known_by_its_lowest_replica(tmp_path: Path, monkeypatch, capsys) -> None:
    """Also in files of before ranks wrote down which stage they carry out."""
    run = made_up_run(tmp_path / "run")
    write_start(run, "a", 1, *LEARNED, blocks=[0], replica=1)
    slower = span("learn", 2, 9, block=0)
    write_start(run, "a", 0, slower)
    (row,) = json.loads(command(monkeypatch, capsys, "trace", run, "--json")[1])["rows"]
    assert (row["blocks"][0]["learn_s"], row["replicas"]) == (7, 2)
