"""The data of a run that goes on, or is evaluated again, is the data that it was trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image

import ppll
from ppll.checkpoints.checkpoint import read_validation, step_folder, write_validation
from ppll.checkpoints.manifest import ValidationRecord
from ppll.data import Dataset
from ppll.errors import DataError, RecipeError
from ppll.recipe_files import load_recipe

RECIPE: dict[str, dict[str, Any]] = {
    "data": {"batch_size": 16, "train_limit": 32},
    "model": {"name": "resnet", "depth": 8, "width": 4},
    "split": {"blocks": 2},
    "schedule": {"name": "constant"},
}


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))


def arrays(seed: int = 0, channels: int = 1) -> Dataset:
    """Like the digits that a recipe without a name has."""
    images = np.random.default_rng(seed).integers(0, 256, (40, channels, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 10
    return Dataset.from_arrays(train=(images[:32], labels[:32]), test=(images[32:], labels[32:]))


def trainer(out: Path, epochs: int = 2, resume: bool = False, **options: Any) -> ppll.Trainer:
    tree = {**RECIPE, "train": {"epochs": epochs}}
    return ppll.Trainer(tree, out=out, resume=resume, **options)


def files(run: Path) -> dict[Path, bytes]:
    found = (path for path in run.rglob("*") if path.is_file() and path.name != "lock")
    return {path: path.read_bytes() for path in found}


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_from_python_need_not_be_given_again(channels: int, tmp_path: Path) -> None:
    data = arrays(channels=channels)
    trainer(tmp_path / "run", data=data).fit()
    found = trainer(tmp_path / "run", epochs=3, resume=True).fit()
    whole = trainer(tmp_path / "whole", epochs=3, data=data).fit()
    assert (found.step, found.weights_sha256) == (6, whole.weights_sha256)


def test_the_recipe_says_that_the_data_was_given(tmp_path: Path) -> None:
    trainer(tmp_path / "run", data=arrays()).fit()
    recipe = load_recipe(tmp_path / "run" / "config.toml")
    assert recipe.data.name == "(given from Python)"
    with pytest.raises(DataError, match=r"given from Python.*data\.name.*resume"):
        ppll.Trainer(recipe)
    with pytest.raises(RecipeError, match=r"unknown option.*'data\.num_workers'"):
        ppll.Trainer({"data": {"num_workers": 4}}, data=arrays())


def test_options_of_a_set_give_way_with_it() -> None:
    synthetic = {"name": "synthetic", "shape": [1, 8, 8], "num_classes": 3}
    found = ppll.Trainer({"data": {**synthetic, "batch_size": 16}}, data=arrays()).recipe.data
    assert (found.name, found.options, found.batch_size) == ("(given from Python)", {}, 16)


def test_a_run_goes_on_by_its_own_recipe(tmp_path: Path) -> None:
    """Whatever of its data may change but the arrays."""
    out = tmp_path / "run"
    trainer(out, data=arrays()).fit()
    longer = load_recipe(out / "config.toml").with_settings(["train.epochs=3", "data.crop=1"])
    result = ppll.Trainer(longer, out=out, resume=True, allow_change=["data"]).fit()
    assert (result.step, ppll.load(out).facts.is_given) == (6, True)


@pytest.mark.parametrize("before", [None, 0], ids=["named", "arrays"])
def test_other_arrays_are_refused_before_anything_is_written(
    before: int | None, tmp_path: Path
) -> None:
    trainer(tmp_path / "run", data=None if before is None else arrays(before)).fit()
    written = files(tmp_path / "run")
    again = trainer(tmp_path / "run", epochs=3, resume=True, data=arrays(1))
    for go_on in (again.check, again.fit):
        with pytest.raises(DataError, match=r"(?s)other data.*another --out.*--allow-change data"):
            go_on()
    assert files(tmp_path / "run") == written


def damage(run: Path) -> None:
    """Another value of one pixel."""
    kept = run / "data.safetensors"
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)


def test_damaged_arrays_are_told_from_the_run_s(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained = trainer(run, data=arrays()).fit()
    whole = (run / "data.safetensors").read_bytes()
    damage(run)
    with pytest.raises(DataError, match=r"data\.safetensors does not hold .*--allow-change data"):
        trainer(run, epochs=3, resume=True)
    for evaluate in (ppll.evaluate, ppll.evaluate_exits):
        with pytest.raises(DataError, match="does not hold the arrays that the run was given"):
            evaluate(run)
    assert trainer(run, epochs=3, resume=True, data=arrays()).fit().step == 6
    assert (run / "data.safetensors").read_bytes() == whole
    assert ppll.evaluate(run).step == trained.step + 2


def test_arrays_of_another_run_pass_where_that_is_allowed(tmp_path: Path) -> None:
    for seed in (0, 1):
        trainer(tmp_path / str(seed), data=arrays(seed)).fit()
    shutil.copy(tmp_path / "1" / "data.safetensors", tmp_path / "0")
    with pytest.raises(DataError, match="is damaged, or of another run"):
        trainer(tmp_path / "0", epochs=3, resume=True)
    trainer(tmp_path / "0", epochs=3, resume=True, allow_change=["data"]).fit()
    assert ppll.evaluate(tmp_path / "0").step == 6


def test_arrays_that_could_not_be_kept_are_not_the_run_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else accuracies of others would stand beside theirs, once there is room on the disk."""
    run = tmp_path / "run"
    trainer(run, data=arrays()).fit()
    newest = step_folder(run / "checkpoints", 4)
    write_validation(newest, ValidationRecord(step=4, accuracy=1.0))

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "save", full)
        with pytest.raises(OSError, match="no space left"):
            trainer(run, epochs=3, resume=True, data=arrays(1), allow_change=["data"]).fit()
    assert ppll.evaluate(run).step == 4
    with pytest.raises(DataError, match="other data than is given now"):
        trainer(run, epochs=3, resume=True, data=arrays(1)).check()


def test_arrays_that_were_left_out_are_written_again(tmp_path: Path) -> None:
    trainer(tmp_path / "run", data=arrays()).fit()
    (tmp_path / "run" / "data.safetensors").unlink()
    for evaluate in (ppll.evaluate, ppll.evaluate_exits):
        with pytest.raises(DataError, match=r"data\.safetensors is not there, .* which writes it"):
            evaluate(tmp_path / "run")
    with pytest.raises(DataError, match="other data than is given now"):
        trainer(tmp_path / "run", epochs=3, resume=True, data=arrays(1)).check()
    trainer(tmp_path / "run", epochs=3, resume=True, data=arrays()).fit()
    assert ppll.evaluate(tmp_path / "run").step == 6


def test_a_folder_that_knows_no_digest_still_opens(tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    trainer(tmp_path / "run", data=arrays()).fit()
    facts = json.loads((tmp_path / "run" / "data.json").read_text())
    assert facts.pop("digest")
    (tmp_path / "run" / "data.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="other data than is given now"):
        trainer(tmp_path / "run", epochs=3, resume=True, data=arrays(1)).check()
    assert ppll.evaluate(tmp_path / "run").step == 4
    assert trainer(tmp_path / "run", epochs=3, resume=True, data=arrays()).fit().step == 6


@pytest.mark.parametrize("allowed", ["data", "data.name"])
def test_arrays_may_give_way_to_what_the_recipe_names(allowed: str, tmp_path: Path) -> None:
    trainer(tmp_path / "run", data=arrays()).fit()
    trainer(tmp_path / "run", epochs=3, resume=True, allow_change=[allowed]).fit()
    assert not (tmp_path / "run" / "data.safetensors").exists()
    assert ppll.load(tmp_path / "run").facts.num_test == 360


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Classes that brightness tells apart."""
    draw = np.random.default_rng(0)
    for part, name, index in np.ndindex(2, 2, 16):
        folder = tmp_path / "pets" / ("train", "test")[part] / "ab"[name]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(100 * name, 100 + 100 * name, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return tmp_path / "pets"


def of_pets(pets: Path, out: Path, epochs: int = 2, **options: Any) -> ppll.Trainer:
    data = {"name": "image-folder", "root": str(pets), "size": 8, "batch_size": 16}
    tree = {**RECIPE, "data": data, "train": {"epochs": epochs}}
    return ppll.Trainer(tree, out=out, resume=epochs > 2, **options)


def brighten(part: Path) -> None:
    for file in part.rglob("*.png"):
        pixels = np.asarray(Image.open(file))
        Image.fromarray((200 + pixels // 8).astype(np.uint8)).save(file)


def test_images_that_have_changed_are_refused(pets: Path, tmp_path: Path) -> None:
    of_pets(pets, tmp_path / "run").fit()
    brighten(pets / "train")
    facts = (tmp_path / "run" / "data.json").read_text()
    with pytest.raises(DataError, match=r"(?s)other data.*  mean \(was .*--allow-change data"):
        of_pets(pets, tmp_path / "run", epochs=3).fit()
    assert (tmp_path / "run" / "data.json").read_text() == facts
    newest = step_folder(tmp_path / "run" / "checkpoints", 4)
    write_validation(newest, ValidationRecord(step=4, accuracy=1.0))
    assert of_pets(pets, tmp_path / "run", epochs=3, allow_change=["data"]).fit().step == 6
    assert read_validation(newest) is None  # It was of other samples.


def test_images_may_move(pets: Path, tmp_path: Path) -> None:
    of_pets(pets, tmp_path / "run").fit()
    assert of_pets(pets.rename(tmp_path / "moved"), tmp_path / "run", epochs=3).fit().step == 6


def test_a_run_is_evaluated_as_it_was_normalised_in_training(pets: Path, tmp_path: Path) -> None:
    trained = of_pets(pets, tmp_path / "run").fit()
    brighten(pets / "train")
    assert ppll.evaluate(tmp_path / "run").exit_accuracy == trained.exit_accuracy
    assert ppll.evaluate_exits(tmp_path / "run").exit_accuracy == trained.exit_accuracy


def test_a_run_is_evaluated_on_no_other_classes(pets: Path, tmp_path: Path) -> None:
    of_pets(pets, tmp_path / "run").fit()
    for part in ("train", "test"):
        shutil.copytree(pets / part / "a", pets / part / "c")
    for evaluate in (ppll.evaluate, ppll.evaluate_exits):
        with pytest.raises(DataError, match=r"in 2 classes, but its data has .* in 3 now"):
            evaluate(tmp_path / "run")


def test_an_older_checkpoint_is_read_as_it_was_normalised(tmp_path: Path) -> None:
    run, inputs = tmp_path / "run", torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    data, target = arrays(), tmp_path / "model.safetensors"
    trained = trainer(run, data=data).fit()
    with torch.no_grad():
        expected = ppll.load(run)(inputs)
    images = data.train.inputs // 8
    dark = Dataset.from_arrays(
        train=(images, data.train.targets), test=(data.test.inputs, data.test.targets)
    )
    assert trainer(run, epochs=3, resume=True, data=dark, allow_change=["data"]).fit().step == 6
    with torch.no_grad():
        assert torch.equal(ppll.load(run, step=4)(inputs), expected)
        assert not torch.equal(ppll.load(run)(inputs), expected)
    for evaluate in (ppll.evaluate, ppll.evaluate_exits):
        assert evaluate(run, step=4).exit_accuracy == trained.exit_accuracy
    ppll.export(run, target, step=4)
    with safetensors.safe_open(target, framework="pt") as file:
        assert json.loads(file.metadata()["ppll"])["data"]["mean"] == list(data.mean or ())


def test_a_limit_of_the_test_part_holds_wherever_a_run_is_tested(tmp_path: Path) -> None:
    tree = {**RECIPE, "data": {"batch_size": 16, "test_limit": 5}, "train": {"epochs": 1}}
    result = ppll.Trainer(tree, data=arrays(), out=tmp_path / "run").fit()
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert {row["samples"] for row in rows if row["kind"] == "test"} == {5}
    assert ppll.evaluate(tmp_path / "run").exit_accuracy == result.exit_accuracy
    exits = ppll.evaluate_exits(tmp_path / "run")
    assert (exits.num_samples, exits.exit_accuracy) == (5, result.exit_accuracy)
    assert "test_limit = 5" in (tmp_path / "run" / "config.toml").read_text()
