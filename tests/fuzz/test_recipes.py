"""Recipes: a recipe that reads back to an equal one, or ``RecipeError``; and no partial run."""

from __future__ import annotations

import copy
import json
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import ppll
from ppll.config import Recipe
from ppll.errors import PpllError, RecipeError, RunFolderError
from ppll.recipe_files import load_recipe, shipped_recipes
from ppll.run_folder import RunFolder

from . import NUMBERS, TEXTS, fuzz, mutated_bytes, mutated_tree, nested

SMALL: dict[str, Any] = {
    "data": {
        "name": "synthetic",
        "shape": [1, 8, 8],
        "num_classes": 3,
        "num_train": 45,
        "num_test": 10,
        "batch_size": 10,
        "validation": 7,
        "crop": 1,
    },
    "model": {"name": "resnet", "depth": 14, "width": 4},
    "split": {"blocks": 3, "cuts": [2, 4]},
    "method": {"name": "dgl"},
    "optimizer": {"name": "adamw", "lr": 0.05, "betas": [0.9, 0.99], "blocks": {"1": {"lr": 0.1}}},
    "schedule": {"warmup_epochs": 1},
    "train": {"epochs": 3, "seed": 5},
    "runtime": {"stages": 2, "devices": ["cpu", "cpu"]},
    "checkpoint": {"every_steps": 3},
}
WHOLE = json.loads(Recipe.from_dict(SMALL).model_dump_json(exclude_none=True))


def accepted(tree: dict[str, Any]) -> Recipe | None:
    """The recipe, which comes back from its TOML; none where it was refused."""
    try:
        recipe = Recipe.from_dict(tree)
    except RecipeError:
        return None
    assert Recipe.from_dict(tomllib.loads(recipe.to_toml())) == recipe
    recipe.num_steps(100)
    return recipe


def loaded(path: Path) -> Recipe | None:
    try:
        recipe = load_recipe(path)
    except RecipeError:
        return None
    return accepted(recipe.model_dump(mode="json"))


@fuzz(200)
@given(mutated_tree(WHOLE))
def test_a_mutated_tree_is_refused_or_comes_back(tree: dict[str, Any]) -> None:
    accepted(tree)


@pytest.mark.parametrize("name", ["digits-vit", "all keys"])
def test_mutated_text_is_refused_or_comes_back(name: str, tmp_path: Path) -> None:
    text = shipped_recipes().get(name) or Recipe.from_dict(SMALL).to_toml()
    path = tmp_path / "mutated.toml"

    @fuzz(75)
    @given(mutated_bytes(text.encode()))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        loaded(path)

    check()


@fuzz(50)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_noise_is_refused_or_comes_back(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / "noise.toml"
    path.write_bytes(noise)
    loaded(path)


@fuzz(50)
@given(mutated_bytes(Recipe.from_dict(SMALL).to_toml().encode()))
def test_a_run_s_recipe_that_cannot_be_read_is_an_error(tmp_path: Path, content: bytes) -> None:
    folder = RunFolder(tmp_path)
    folder.config.write_bytes(content)
    with suppress(RunFolderError):
        accepted(folder.read_recipe().model_dump(mode="json"))


keys = st.sampled_from(
    [f"{section}.{key}" for section, tree in WHOLE.items() for key in tree]
    + ["optimizer.blocks.0.lr", "model.x.y.z", "model", "", ".", "a..b", "model.\udcff", "x.y"]
    + [".".join("model" + "a" * 100)]
)
values = (
    st.sampled_from([*map(repr, NUMBERS[:-4]), *TEXTS, "nan", "-inf", "0x" + "f" * 5000])
    | st.sampled_from(
        ["[" * 3000, "{a=" * 2000, "1\nx=2", "1 # x", '"""', "1979-05-27", "07:32:00"]
    )
    | st.text(max_size=20)
)


@fuzz(150)
@given(st.lists(st.builds("{}={}".format, keys, values) | st.text(max_size=20), max_size=3))
@example(["train.epochs=1\nseed=2"])
@example(["model.x=\udcff"])
def test_settings_are_refused_or_come_back(settings: list[str]) -> None:
    for base in (Recipe(), Recipe.from_dict(SMALL)):
        try:
            recipe = base.with_settings(settings)
        except RecipeError:
            continue
        accepted(recipe.model_dump(mode="json"))


def test_a_setting_changes_one_key() -> None:
    """A value of several lines is a text and sets nothing else."""
    recipe = Recipe().with_settings(["model.x=1\ny=2"])
    assert recipe.model.options == {"x": "1\ny=2"}


@fuzz(50)
@given(st.sampled_from([*TEXTS, ".", "..", "/", "x" * 300, "\0.toml"]) | st.text(max_size=30))
def test_a_name_of_no_recipe_is_refused(name: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe(name)


DIGITS = "1" * 5000
LARGE = f"0x{'f' * 5000}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data]\nvalidation = nan", r"data\.validation: nan is not a finite number"),
        ("[data]\nvalidation = inf", r"data\.validation: inf"),
        (f"[train]\nepochs = {DIGITS}", "is not TOML"),
        (f"[train]\nepochs = {LARGE}", r"train\.epochs: the number has more than 64 bits"),
        (f"[optimizer]\nlr = {LARGE}", r"optimizer\.lr: the number has more than 64 bits"),
        (f'[train]\nepochs = "{DIGITS}"', r"train\.epochs: .*\(found '1{199}\.\.\.\)"),
        (f"[model]\nx = {'[' * 3000}{']' * 3000}", "is not TOML: it is nested too deeply"),
        (f"[model.{'.'.join('a' * 3000)}]\nx = 1", r"nested"),
        ("[model]\nx = [[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]", r"model\.x: it is nested more"),
        ("[model]\nx = nan", r"model\.x: nan is not a finite number"),
        ("[model]\nx = 1979-05-27", r"model\.x: a date has no place here"),
        ("[model]\nx = [07:32:00]", r"model\.x: a time has no place here"),
        ('[data]\nroot = "\\u0000"', r"data\.root: no path holds a zero byte"),
        ("literal = 1", "unknown key 'literal'"),
        ("[tuple]\nx = 1", "unknown key 'tuple'"),
        ("[train]\nliteral = 1", r"unknown key 'train\.literal'"),
    ],
)
def test_what_once_was_a_crash_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


@pytest.mark.parametrize("value", [nested(5000), {"a": object()}, b"x", {1, 2}, "\udcff", 1j])
def test_options_from_python_are_those_that_toml_has(value: object) -> None:
    with pytest.raises(RecipeError, match=r"model\.x"):
        Recipe.from_dict({"model": {"x": value}})


def test_keys_that_need_quotes_come_back() -> None:
    options = {"": 1, "a b": 2, 'ü"\n': 3, "a.b": {"": [{"c d": 4}]}, "__class__": 5}
    recipe = accepted({"model": options})
    assert recipe is not None
    assert recipe.model.options == options


SENSIBLE = [
    *NUMBERS[:6],
    0.5,
    2**62,
    *["x", "vit", "greedy", "linear"],
    "",
    True,
    [],
    [1],
    [2**62],
    {},
]


@fuzz(125)
@given(mutated_tree(SMALL, SENSIBLE))
def test_what_cannot_be_trained_leaves_no_run(tmp_path: Path, tree: dict[str, Any]) -> None:
    out = tmp_path / "run"
    given_tree = copy.deepcopy(tree)
    with suppress(PpllError):
        ppll.Trainer(tree, out=out)
    assert tree == given_tree
    assert not out.exists()
