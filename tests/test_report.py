"""A run folder as a page: what is on it, what it survives, what it never lets through."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import ppll
from ppll.errors import RecipeError, RunFolderError, UsageError
from ppll.reports.data import read_run
from ppll.reports.report import write_report
from tests.test_cli_looking import RECIPE, command
from tests.test_markup import Reader


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    ppll.Trainer({**RECIPE, "runtime": {"log_every_steps": 1}}, out=out).fit()
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(trained, tmp_path / "first"))


def page_of(*runs: Path, costs: Path | None = None) -> Reader:
    target = runs[0].parent / "page.html"
    write_report(runs, target, costs)
    return Reader(target.read_text(encoding="utf-8"))


def rows_of(run: Path) -> Path:
    """Where the only process of a run has written its metrics."""
    return run / "metrics" / "rank-0.jsonl"


def as_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def edit(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_the_page_tells_everything_of_a_run(run: Path) -> None:
    page = page_of(run)
    result = json.loads((run / "result.json").read_text())
    for text in (
        *("exit of block 0", "final output", "train loss, by step", "test accuracy, by step"),
        *("receive wait", "stage 0, block 0", "most memory of the process", "packages.torch"),
        *(result["weights_sha256"], f"{result['test_accuracy']:.2%}", 'name = "synthetic"'),
    ):
        assert text in page.text
    assert page.elements.count("polyline") == 4  # two blocks' training loss and accuracy
    assert page.elements.count("circle") == 4  # one evaluation
    assert page.elements.count("rect") > 5


def test_runs_are_compared_where_they_were_evaluated_most_often(run: Path) -> None:
    """A run with a validation part is tested once, at its end: one test is no curve."""
    before = page_of(run, run).elements
    rows = [{"kind": "validation", "step": n, "block": 1, "accuracy": 0.5} for n in (1, 2)]
    with rows_of(run).open("a") as metrics:
        metrics.write(as_lines(rows))
    after = page_of(run, run).elements
    # Side by side two lines, where there were two points; and each run's own validation.
    assert after.count("circle") == before.count("circle") - 2
    assert after.count("polyline") == before.count("polyline") + 2 + 2


def evaluated(run: Path, name: str, **accuracies: list[float]) -> Path:
    """A copy that was evaluated so and tells nothing else."""
    copy = Path(shutil.copytree(run, run.with_name(name)))
    rows = [
        {"kind": kind, "step": step, "block": 1, "accuracy": accuracy}
        for kind, values in accuracies.items()
        for step, accuracy in enumerate(values)
    ]
    rows_of(copy).write_text(as_lines(rows))
    return copy


def test_runs_are_compared_by_what_all_have(run: Path) -> None:
    """One with a validation part, tested once, beside one that was tested all along."""
    one = evaluated(run, "one", validation=[0.1, 0.2, 0.3], test=[0.4])
    two = evaluated(run, "two", test=[0.1, 0.2, 0.3, 0.4])
    page = page_of(one, two)
    assert "test accuracy of the final output, by step" in page.text
    assert page.elements.count("circle") == 1 + 1  # in the comparison, and of its own
    assert page.elements.count("polyline") == 1 + 2


def test_what_no_two_runs_have_is_named_in_the_comparison(run: Path) -> None:
    one = evaluated(run, "one", validation=[0.1, 0.2, 0.3], train=[0.1])
    two = evaluated(run, "two", test=[0.1, 0.2])
    none = evaluated(run, "none")
    text = page_of(one, two, none).text
    assert "one, validation" in text
    assert "two, test" in text
    assert "accuracy of the final output, by step" in text


def test_the_page_needs_no_network_and_no_script(run: Path) -> None:
    page = page_of(run)
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(page.elements)
    names = {name for name, _ in page.attributes}
    assert not {name for name in names if name.startswith("on")} | (names & {"src", "href"})
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    assert ("content", policy) in page.attributes


EVIL = "</td><script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


def test_a_strangers_run_puts_nothing_in(run: Path) -> None:
    edit(run / "result.json", weights_sha256=EVIL)
    edit(run / "environment.json", processor=EVIL, **{EVIL: {EVIL: EVIL}})
    row = {"step": 1, "block": 0, "loss": 1.0, "accuracy": 0.5, "kind": EVIL[:40]}
    with rows_of(run).open("a") as file:
        file.write(as_lines([row]))
    (run / "history.jsonl").write_text(json.dumps({"time": EVIL, "changed": [EVIL]}) + "\n")
    config = (run / "config.toml").read_text().replace('"resnet"', json.dumps(EVIL))
    (run / "config.toml").write_text(config)
    named = run.with_name("<script>a")
    run.rename(named)
    page = page_of(named)
    assert not {"script", "img"} & set(page.elements)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") >= 7


@pytest.mark.parametrize("name", ["metrics/rank-0.jsonl", "history.jsonl", "environment.json"])
def test_a_file_may_be_missing_or_torn(name: str, run: Path) -> None:
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: len(content) // 2])
    page_of(run)
    (run / name).unlink()
    page_of(run)


@pytest.mark.parametrize("name", ["metrics/rank-0.jsonl", "history.jsonl", "result.json"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_file_that_leads_elsewhere_is_refused(name: str, kind: str, run: Path) -> None:
    (run / name).rename(run / "elsewhere")
    if kind == "link":
        (run / name).symlink_to(run / "elsewhere")
    else:
        os.mkfifo(run / name)
    with pytest.raises(RunFolderError, match=f"cannot read .*{name}"):
        page_of(run)


def test_numbers_that_cannot_be_are_passed_over(run: Path) -> None:
    good = {"kind": "train", "step": 1, "block": 0, "loss": 1.0, "accuracy": 0.5}
    bad = [{"step": -1}, {"block": 2**80}, {"loss": 1e300}, {"accuracy": "x"}, {"kind": 3}]
    lines = [json.dumps({**good, **change}) for change in bad]
    rows_of(run).write_text("\n".join([*lines, '{"loss": NaN}', json.dumps(good)]))
    assert page_of(run).elements.count("circle") == 2


def test_a_run_that_has_not_ended_has_a_page(run: Path) -> None:
    for name in ("result.json", "metrics.jsonl", "timeline.json"):
        (run / name).unlink()
    shutil.rmtree(run / "traces")
    page = page_of(run)
    assert "The run has not ended" in page.text
    assert page.elements.count("polyline") == 4  # of what the rank has written so far
    assert "Nothing was recorded of this." in page.text


def step_row(step: int) -> dict[str, Any]:
    return {"kind": "train", "step": step, "block": 0, "loss": 1.0, "accuracy": 0.5}


def of_steps(path: Path, *, merged: tuple[int, ...], result: int | None = None) -> Path:
    """A run whose last start to end left a row at each of these steps, and a result."""
    path.mkdir(parents=True)
    (path / "config.toml").write_text("")
    (path / "metrics.jsonl").write_text(as_lines([step_row(step) for step in merged]))
    if result is not None:
        numbers = {"train_seconds": 1.0, "samples_per_second": 1.0, "num_stages": 1}
        shares = {"test_accuracy": 0.5, "exit_accuracy": [0.5], "busy_fraction": [1.0]}
        rest = {"step": result, "peak_memory_bytes": [1], "weights_sha256": "none"}
        (path / "result.json").write_text(json.dumps(numbers | shares | rest))
    return path


def test_a_run_that_goes_on_again_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    """What an earlier start left when it ended is older than what each process writes."""
    run = of_steps(tmp_path / "run", merged=(400, 500), result=500)
    assert "earlier start" not in page_of(run).text
    assert [row.step for row in read_run(run).metrics] == [400, 500]  # a copy without the parts
    rows_of(run).parent.mkdir()
    rows_of(run).write_text(as_lines([step_row(step) for step in (400, 500, 900)]))
    assert [row.step for row in read_run(run).metrics] == [400, 500, 900]
    assert "The result is of an earlier start, at step 500" in page_of(run).text
    assert "500 (earlier start)" in page_of(run, run).text


def test_several_runs_are_compared(run: Path) -> None:
    other = run.with_name("second")
    shutil.copytree(run, other)
    config = (other / "config.toml").read_text()
    (other / "config.toml").write_text(config.replace("seed = 0", "seed = 7"))
    (other / "result.json").unlink()
    page = page_of(run, other, run)
    for text in ("3 runs", "Side by side", "train.seed", "second", "not ended", "first (3)"):
        assert text in page.text
    assert "train.epochs07" not in page.text


def test_a_prediction_stands_beside_what_was_measured(run: Path, tmp_path: Path) -> None:
    assert "No costs were given" in page_of(run).text
    costs = tmp_path / "costs.json"
    from ppll.planning.measuring import measure

    measure(ppll.Recipe.from_dict(RECIPE)).write(costs)
    page = page_of(run, costs=costs)
    assert "stage 0: work a message" in page.text
    other = run.with_name("second")
    shutil.copytree(run, other)
    config = (other / "config.toml").read_text()
    (other / "config.toml").write_text(config.replace("width = 4", "width = 8"))
    assert "measured for model.width = 4" in page_of(run, other, costs=costs).text
    with pytest.raises(RecipeError, match=r"measured for model\.width"):
        write_report([other], tmp_path / "page.html", costs)


def test_what_cannot_be_reported_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is not a run folder"):
        write_report([tmp_path], tmp_path / "page.html")
    with pytest.raises(UsageError, match="cannot write"):
        write_report([run], tmp_path / "no" / "page.html")
    with pytest.raises(UsageError, match=r"page\.pdf: the page is HTML"):
        write_report([run], tmp_path / "page.pdf")
    edit(run / "result.json", step="many")
    with pytest.raises(RunFolderError, match=r"cannot read .*result\.json"):
        write_report([run], tmp_path / "page.html")


def test_the_command_says_where_the_page_is(run: Path, monkeypatch, capsys) -> None:
    code, out, err = command(monkeypatch, capsys, "report", run)
    assert code == 0, err
    assert (run / "report.html").is_file()
    assert "report.html" in out
    code, _, err = command(monkeypatch, capsys, "report", run, run)
    assert (code, "needs --to FILE.html" in err) == (2, True)
    code, _, err = command(monkeypatch, capsys, "report", run, "--costs", run / "none.json")
    assert (code, "cannot read the costs" in err) == (2, True)
