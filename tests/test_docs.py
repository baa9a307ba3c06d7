"""The documentation: links lead somewhere, files it names exist, what it shows can be done."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from benchmarks.families.table import PAGES as FAMILIES
from benchmarks.families.table import rows_of_page

import ppll
from ppll.cli.app import app
from ppll.cli.options import with_json_printed
from ppll.recipe_files import load_recipe, shipped_recipes
from ppll.sections import TrackConfig
from tests.libraries import library
from tests.thinning import slow_but

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "benchmarks" / "README.md"]
PAGES += [ROOT / "examples" / "README.md", ROOT / "CONTRIBUTING.md"]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The ``ppll`` commands that a page shows."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [words[1:] for words in lines if words and Path(words[0]).name == "ppll"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    local = [link for link in links if not link.startswith(("http://", "https://"))]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert missing == []


def test_the_index_names_every_page() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in DOCS.glob("*.md")} - {"README.md"}
    folders = {f"{path.parent.name}/README.md" for path in DOCS.glob("*/README.md")}
    assert {page for page in pages | folders if f"({page})" not in index} == set()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_that_is_shown_is_python(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, name(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_that_are_shown_exist(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for words in commands(page):
        command = group.commands[words[0]]
        if hasattr(command, "commands"):
            words, command = words[1:], command.commands[words[1]]
        command.make_context(words[0], with_json_printed(words[1:]))
        if words[0] == "train" and words[1] in shipped_recipes():
            settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
            load_recipe(words[1], settings)


def test_the_tour_names_files_that_exist() -> None:
    text = (DOCS / "tour.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\*\*`([\w/.]+)`\*\*", text))
    assert len(named) > 40
    assert [path for path in sorted(named) if not (ROOT / "src" / "ppll" / path).exists()] == []


def test_what_the_tour_says_of_its_batch_is_so() -> None:
    recipe = load_recipe("digits-resnet", ["train.epochs=1"])
    trainer = ppll.Trainer(recipe)
    assert divmod(118 - 1, trainer.blueprint.steps_per_epoch) == (5, 2)
    assert [list(blocks) for blocks in trainer.blueprint.stage_blocks(2)] == [[0, 1], [2, 3]]


def test_every_key_of_track_is_told_of() -> None:
    text = "".join((DOCS / f"{page}.md").read_text() for page in ("timeline", "callbacks"))
    assert [key for key in TrackConfig.model_fields if f"track.{key}" not in text] == []


def run(page: str, *indices: int) -> dict[str, Any]:
    """Carry out a page's Python, one block after another, and give back its names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for index in indices:
        exec(compile(blocks(DOCS / page, "python")[index], page, "exec"), names)
    return names


def test_the_data_set_of_torch_is_read() -> None:
    names = run("data.md", 2)
    data, digits = names["data"], names["whole"].digits
    assert (len(data.train), len(data.test), data.input_shape) == (1437, 360, (1, 8, 8))
    assert data.test.targets.tolist() == digits.target[1437:].tolist()
    assert data.mean[0] == pytest.approx(digits.images[:1437].mean() / 16, abs=1e-3)


def test_the_function_as_a_callback_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(run("callbacks.md", 0)["rows"]) >= 4
    assert capsys.readouterr().out.startswith("{'kind': 'train', 'step': ")


@pytest.fixture
def ten_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end after ten steps, where it does not matter what they come to."""
    whole = ppll.Trainer

    def short(recipe: dict[str, Any], **options: Any) -> ppll.Trainer:
        train = {**recipe.get("train", {}), "max_steps": 10}
        return whole({**recipe, "train": train}, **options)

    monkeypatch.setattr(ppll, "Trainer", short)


@pytest.mark.parametrize(
    ("page", "index"), slow_but([("models.md", 4)], [("models.md", 4), ("data.md", 1)])
)
def test_models_that_hand_on_several_tensors_learn(
    page: str, index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dictionary, and rows of tokens beside their mask."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    result = run(page, index)["result"]
    assert result.test_accuracy > 0.85
    assert_there_are_four_blocks(result, tmp_path)


def assert_there_are_four_blocks(result: ppll.Result, folder: Path) -> None:
    assert len(result.exit_accuracy) == 4
    assert (folder / result.run_folder / "result.json").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("ten_steps")
def test_the_script_that_may_be_interrupted_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = []
    for _ in range(2):  # The second goes on at the end of the first.
        run("failures.md", 0)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert printed[0].endswith("%\n")


def test_what_is_exported_predicts_as_it_is_fed_and_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = run("trained.md", 0, 1)
    probes = re.findall(r"^block (\d): ([\d.]+)%$", capsys.readouterr().out, flags=re.MULTILINE)
    assert [index for index, accuracy in probes if float(accuracy) > 85] == ["0", "1"]
    assert torch.equal(names["logits"], names["same_logits"])
    shown = " | ".join(f"{names['data'][key][0]:.4f}" for key in ("mean", "std"))
    assert f"| `digits` | {shown} |" in (DOCS / "data.md").read_text(encoding="utf-8")
    right = names["logits"].argmax(1) == torch.tensor(names["load_digits"]().target)
    assert right.float().mean() > 0.9


@pytest.mark.parametrize(
    ("index", "needed"),
    slow_but([(3, "torch")], [(0, "timm"), (1, "transformers"), (3, "torch")]),
)
@pytest.mark.usefixtures("ten_steps")
def test_the_runs_of_model_families_work(
    index: int, needed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library(needed)
    monkeypatch.chdir(tmp_path)
    assert_there_are_four_blocks(run("models.md", index)["result"], tmp_path)


@pytest.mark.usefixtures("ten_steps")
def test_an_encoder_in_parts_computes_what_it_does_with_a_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library("transformers")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = run("models.md", 2)
    data, bert, given = names["data"].test, names["bert"].eval(), names["data"].test.inputs
    with torch.no_grad():
        logits = bert(given, attention_mask=given != names["PADDING"]).logits
        for part in names["model"]:
            given = part.eval()(given)
    assert torch.equal(given, logits)
    right = (logits.argmax(1) == data.targets).float().mean()
    assert names["result"].test_accuracy == pytest.approx(float(right))
    assert_there_are_four_blocks(names["result"], tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_tables_of_model_families_show_what_was_measured(family: str) -> None:
    """``python -m benchmarks.families.run table`` puts them there."""
    assert "\n".join(rows_of_page(family)) in (DOCS / "models.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_callback_that_stops_early_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run("callbacks.md", 2)
    result = names["result"]
    assert result.stopped
    assert result.step > result.best_step > 0
    assert result.best_validation_accuracy == names["early"].best


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    """What W&B would show of a run."""
    wandb: Any = ModuleType("wandb")
    tracked = FakeRun()
    wandb.init = lambda **_: tracked
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return tracked


def test_the_callback_for_weights_and_biases_works(tracked: FakeRun, tmp_path: Path) -> None:
    callback = run("callbacks.md", 1)["WandB"]()
    recipe = load_recipe("digits-resnet", ["train.max_steps=3", "model.depth=14"])
    result = ppll.Trainer(recipe, out=tmp_path / "run", callbacks=[callback]).fit()
    assert tracked.exit_code == 0
    expected = {"test_loss": result.test_loss, "test_accuracy": result.test_accuracy}
    assert tracked.summary == expected
    assert {key for values in tracked.logged for key in values} >= {
        *("train/block-0/loss", "test/block-3/accuracy", "step")
    }


@pytest.mark.parametrize(
    ("reached", "code"), [("failed", 1), ("interrupted", 1), ("done", 0), ("values", 0)]
)
def test_weights_and_biases_hears_how_a_run_ended(
    reached: str, code: int, tracked: FakeRun, tmp_path: Path
) -> None:
    callback = run("callbacks.md", 1)["WandB"]()
    callback.on_start(tmp_path, load_recipe("digits-resnet"))
    accuracy = 0.9 if reached == "done" else None
    loss = 0.5 if reached in ("done", "values") else None
    result = SimpleNamespace(test_accuracy=accuracy, test_loss=loss)
    callback.on_end(result if reached != "failed" else None)
    assert tracked.exit_code == code
    expected = {"test_loss": loss, "test_accuracy": accuracy}
    assert tracked.summary == (expected if code == 0 else {})


def test_values_are_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run("data.md", 3)
    share = re.fullmatch(r"unexplained variance: (\d+)%\n", capsys.readouterr().out)
    assert share is not None
    assert int(share[1]) < 80


def test_data_that_a_recipe_names_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_table.py").write_text(blocks(DOCS / "data.md", "python")[4], encoding="utf-8")
    (tmp_path / "wine.toml").write_text(blocks(DOCS / "data.md", "toml")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    result = ppll.Trainer("wine.toml").fit()
    assert result.test_accuracy is not None
    assert result.test_accuracy > 0.9
