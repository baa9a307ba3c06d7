"""What a person sees of a run: on a terminal of 80 columns, in a file, with --quiet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

import ppll
from ppll.data_facts import DataFacts
from ppll.live import LiveView, progress_console, show_blocks, together
from ppll.pace import Pace
from ppll.status import Activity, Status, StatusPage
from tests.test_cli_looking import RECIPE

NAN = float("nan")
FACTS = DataFacts((1, 8, 8), 3, 3, num_test=10_000, num_validation=2_500)


@pytest.fixture
def trainer(tmp_path: Path) -> ppll.Trainer:
    sections = {**RECIPE, "runtime": {"stages": 2}, "train": {"epochs": 4}}
    return ppll.Trainer(sections, out=tmp_path / "run")


def console(*, terminal: bool = True) -> Console:
    return Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=None)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def status(step: int, samples: int, activity: Activity = Activity.LEARN) -> Status:
    epoch = (step - 1) // 3
    return Status(
        *(activity, 12.0, 0, step, epoch, samples, 3, 1, NAN, NAN),
        started_s=2.0,
        waited_s=2.5,
        memory_bytes=300 * 2**20,
    )


def told(view: LiveView) -> None:
    for block, loss in ((0, 1.25), (1, 0.5)):
        for kind, accuracy in (("train", 0.75), ("test", 0.6)):
            view.on_metrics({"kind": kind, "block": block, "loss": loss, "accuracy": accuracy})


def test_a_terminal_shows_everything_in_80_columns(trainer: ppll.Trainer) -> None:
    view = LiveView(console(), trainer.blueprint, FACTS)
    told(view)
    view.update([status(6, 120, Activity.RECEIVE), status(5, 100)])
    shown = console()
    shown.print(view.render())
    text = printed(shown)
    assert max(len(line) for line in text.splitlines()) <= 80
    for word in ("epoch 2/4", "2/3", "receive wait", "learn", "75%", "3/4", "300 MiB", "1.250"):
        assert word in text
    assert text.split()[-4:] == ["1", "0.500", "75%", "60%"]


def test_of_values_it_shows_the_losses_of_tests(trainer: ppll.Trainer) -> None:
    view = LiveView(console(terminal=False), trainer.blueprint, FACTS)
    for block, loss in ((0, 1.25), (1, 0.5)):
        view.on_metrics({"kind": "test", "block": block, "loss": loss, "accuracy": None})
    view.update([status(6, 120), status(5, 100)])
    assert "tested 1.250 0.500" in view._line()
    shown = console()
    shown.print(view.render())
    assert printed(shown).split()[-2:] == ["1", "0.500"]


def test_replicas_are_counted_and_only_the_first_ones_shown(tmp_path: Path) -> None:
    sections = {**RECIPE, "runtime": {"stages": 2}, "train": {"epochs": 4, "replicas": [1, 2]}}
    blueprint = ppll.Trainer(sections, out=tmp_path / "run").blueprint
    shown = console()
    show_blocks(shown, blueprint)
    lines = [line.split()[:3] for line in printed(shown).splitlines()]
    assert lines == [["stage", "replicas", "block"], ["0", "1", "0"], ["1", "2", "1"]]
    view = LiveView(console(), blueprint, FACTS)
    view.update([status(6, 120), status(5, 51), status(4, 49, Activity.SEND)])
    shown = console()
    shown.print(view.render())
    assert "send" not in printed(shown)
    assert view._pace._marks[-1][1] == 100


def test_before_the_first_batch_it_says_so(trainer: ppll.Trainer) -> None:
    view = LiveView(console(), trainer.blueprint, FACTS)
    shown = console()
    shown.print(view.render())
    view.update([status(0, 0), status(0, 0)])
    shown.print(view.render())
    assert printed(shown).split() == ["starting", "starting"]


def test_blocks_of_which_nothing_is_known_are_empty(trainer: ppll.Trainer) -> None:
    view = LiveView(console(), trainer.blueprint, FACTS)
    view.update([status(2, 40), status(1, 20)])
    view.on_metrics({"kind": "train", "block": 1, "loss": None, "accuracy": None})
    shown = console()
    shown.print(view.render())
    assert "nan" not in printed(shown).lower()


def test_a_file_gets_plain_lines(trainer: ppll.Trainer) -> None:
    to = console(terminal=False)
    with LiveView(to, trainer.blueprint, FACTS) as view:
        view._next_line_s = float("inf")
        view.update([status(3, 60), status(2, 40)])
        told(view)
        view._next_line_s = 0.0
        view.update([status(6, 120), status(5, 100)])
        view.update([status(6, 120), status(5, 100)])  # at once: no second line
    lines = [line for line in printed(to).splitlines() if line.startswith("step")]
    (line,) = lines
    assert line == "step 5/12  epoch 2/4  loss 1.250 0.500  tested 60% 60%  busy 75% 75%"
    assert "\x1b" not in printed(to)


@pytest.mark.parametrize("terminal", [True, False])
def test_an_evaluation_says_how_far_it_is(trainer: ppll.Trainer, terminal: bool) -> None:
    to = console(terminal=terminal)
    view = LiveView(console(terminal=False), trainer.blueprint, FACTS)
    view._pace.note(1, 20, 1.0)
    view._pace.note(12, 240, 3.0)
    during = status(6, 120, Activity.EVALUATE)._replace(tested=1_200)
    last = status(12, 240, Activity.RECEIVE)._replace(tested=4_000)
    for now, words in ((during, "testing, 1,200 of 2,500"), (last, "testing, 4,000 of 12,500")):
        view._statuses = [status(12, 240), now]
        to.print(view.render() if terminal else view._line())
        shown = printed(to).splitlines()[-4 if terminal else -1]
        assert words in shown
        assert "samples/s" not in shown
    view._statuses = [status(12, 240), status(12, 240)]
    assert "testing" not in view._line()
    assert "110 samples/s" in view._line()
    assert "left" not in view._line()


def test_a_rank_counts_what_it_tests(trainer: ppll.Trainer, monkeypatch) -> None:
    seen: list[Status] = []
    write = StatusPage.write

    def note(page: StatusPage, status: Status) -> None:
        seen.append(status)
        write(page, status)

    monkeypatch.setattr(StatusPage, "write", note)
    recipe = trainer.recipe.with_settings(["runtime.stages=1"])
    ppll.Trainer(recipe, out=trainer._out).fit()
    assert seen[-1].tested == trainer._facts.num_evaluated(at_end=True) > 0
    assert {status.tested for status in seen if status.activity is Activity.LEARN} == {0}


def test_before_anything_is_known_a_file_gets_no_step(trainer: ppll.Trainer) -> None:
    to = console(terminal=False)
    with LiveView(to, trainer.blueprint, FACTS) as view:
        view.update([status(0, 0), status(0, 0)])
    assert printed(to).splitlines()[-1] == "starting"


@pytest.mark.parametrize("progress", [None, False])
def test_python_is_quiet_where_nobody_looks(
    progress: bool | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ppll.Trainer(RECIPE, out=tmp_path / "run", progress=progress).fit()
    assert capsys.readouterr() == ("", "")


def test_python_shows_progress_where_it_is_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ppll.Trainer(RECIPE, out=tmp_path / "run", progress=True).fit()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.split()[:5] == ["stage", "block", "layers", "parameters", "auxiliary"]


def test_several_watchers_are_told_together() -> None:
    first, second = [], []
    assert together([]) is None
    watch = together([first.append, second.append])
    assert watch is not None
    watch([status(1, 20)])
    assert first == second == [[status(1, 20)]]


def test_a_watcher_that_fails_is_told_no_more(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    def fail(statuses: Sequence[Status]) -> None:
        told.append("fail")
        raise ValueError("no such place")

    watch = together([fail, lambda _: told.append("other")])
    assert watch is not None
    watch([])
    watch([])
    assert told == ["fail", "other", "other"]
    assert "no such place" in caplog.text


def test_a_terminal_and_a_notebook_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress_console(None) is None
    monkeypatch.setattr(Console, "is_terminal", True)
    assert progress_console(None) is not None
    assert progress_console(False) is None
    monkeypatch.setattr(Console, "is_terminal", False)
    monkeypatch.setattr(Console, "is_jupyter", True, raising=False)
    monkeypatch.setattr(Console, "__init__", lambda self, **_: None)
    assert progress_console(None) is not None


@pytest.mark.processes
def test_a_run_tells_the_view_of_every_block(trainer: ppll.Trainer) -> None:
    view = LiveView(console(), trainer.blueprint, FACTS)
    trainer.watch = view.update
    trainer.callbacks.append(view)
    trainer.fit()
    shown = console()
    shown.print(view.render())
    words = printed(shown).split()
    assert "MiB" in words
    assert words.count("%") == 0
    assert len([word for word in words if word.endswith("%")]) == 2 + 2 * 2


def test_a_status_knows_how_busy_it_was() -> None:
    assert status(1, 1).busy == 0.75
    assert status(1, 1)._replace(started_s=0.0).busy is None


def test_pace_is_of_the_last_seconds_and_the_rest_of_all() -> None:
    pace = Pace(num_steps=100)
    assert pace.words() == []
    pace.note(0, 0, 0.0)
    for second in range(1, 31):
        pace.note(second, 10 * second if second < 15 else 140 + 40 * (second - 14), float(second))
    assert pace.samples_per_second == 40
    assert pace.left_s == 70
    assert pace.words() == ["40 samples/s", "0:01:10 left"]


def test_pace_begins_anew_after_a_restart() -> None:
    pace = Pace(num_steps=100)
    pace.note(1, 10, 1.0)
    pace.note(9, 90, 9.0)
    pace.note(5, 10, 20.0)
    assert pace.words() == []
    pace.note(7, 30, 22.0)
    assert pace.samples_per_second == 10
    assert pace.left_s == 93
