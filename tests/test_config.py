"""The recipe: what is refused and in which words, settings, and the way to TOML and back."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from ppll.config import Recipe
from ppll.errors import RecipeError
from ppll.recipe_files import load_recipe, shipped_recipes

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown section": ({"trian": {}}, r"unknown key 'trian'\. Did you mean 'train'\?"),
    "setting as a key": (
        {"train.epochs": 3},
        r"'train\.epochs'\. A section is a dictionary: \{'train': \{'epochs': \.\.\.\}\}\.",
    ),
    "key without section": ({"epochs": 3}, r"unknown key 'epochs'\. Did you mean train\.epochs\?"),
    "key of several sections": ({"name": "x"}, r"Did you mean data\.name or model\.name or "),
    "no section": (
        {"train": 3},
        r"^train: is a section of keys, found 3: write train\.KEY=VALUE, or \{'train': \{'KEY': ",
    ),
    "name for a section": (
        {"method": "dgl"},
        r"section of keys, found 'dgl': write method\.name='",
    ),
    "list without brackets": (
        {"train": {"replicas": "1,2,1"}},
        r"^train\.replicas: .*\(found '1,2,1'\); a list stands in brackets, as in \[1, 2\]\.",
    ),
    "more replicas of a block than samples": (
        {"data": {"batch_size": 3}, "train": {"replicas": [1, 2, 4, 1]}},
        r"batch_size = 3 samples: ask for 3 or fewer for every block",
    ),
    "replicas of other blocks": (
        {"train": {"replicas": [1, 2]}},
        r"give one a block, or one for all, as a method needs .*, such as backprop\.",
    ),
    "unknown key": ({"train": {"epoch": 1}}, r"'train\.epoch'\. Did you mean 'train\.epochs'\?"),
    "unknown override": (
        {"optimizer": {"blocks": {"1": {"lrr": 1}}}},
        r"Did you mean 'optimizer\.blocks\.1\.lr'\?",
    ),
    "unknown override of a schedule": (
        {"schedule": {"blocks": {"1": {"warmup": 1}}}},
        r"Did you mean 'schedule\.blocks\.1\.warmup_epochs'\?",
    ),
    "wrong type": ({"train": {"epochs": "x"}}, r"^train\.epochs: .*integer.*\(found 'x'\)"),
    "out of range": ({"data": {"batch_size": 0}}, r"^data\.batch_size: .*\(found 0\)"),
    "share or count": ({"data": {"validation": -1}}, r"^data\.validation: .*-1"),
    "no choice": ({"split": {"cuts": "odd"}}, r"^split\.cuts: .*'even'.*\(found 'odd'\)"),
    "cuts descend": ({"split": {"blocks": 3, "cuts": [3, 2]}}, r"cuts must ascend, found \[3, 2"),
    "cuts repeat": ({"split": {"blocks": 3, "cuts": [2, 2]}}, r"must ascend, found \[2, 2\]"),
    "cuts and blocks": ({"split": {"blocks": 4, "cuts": [2, 3]}}, r"makes 3 blocks.*blocks = 4"),
    "stages": ({"runtime": {"stages": 5}}, r"stages = 5, .*blocks = 4, .* ask for 1 to 4 stages"),
    "override of no block": ({"optimizer": {"blocks": {"4": {}}}}, r"blocks count from 0 to 3"),
    "schedule of no block": (
        {"schedule": {"blocks": {"4": {}}}},
        r"schedule\.blocks\.4: .* 0 to 3",
    ),
    "override of a name": (
        {"schedule": {"blocks": {"x": {"name": "constant"}}}},
        r"^schedule\.blocks\.x: write schedule\.blocks\.INDEX\.KEY, .* warmup_epochs, .*found 'x'",
    ),
    "override without key": (
        {"optimizer": {"blocks": {"1": 3}}},
        r"^optimizer\.blocks\.1: write optimizer\.blocks\.INDEX\.KEY.*lr, weight_decay \(found 3\)",
    ),
    "override of nothing": ({"optimizer": {"blocks": 3}}, r"^optimizer\.blocks: write .*found 3"),
    "override to nonsense": (
        {"schedule": {"blocks": {"1": {"name": "cosin"}}}},
        r"^schedule\.blocks\.1\.name: .*'cosine'.*\(found 'cosin'\)",
    ),
    "override to true": (
        {"optimizer": {"blocks": {"1": {"lr": True}}}},
        r"^optimizer\.blocks\.1\.lr: must not be true or false, found True\.",
    ),
    "no checkpoint": ({"checkpoint": {"keep": 0}}, r'^checkpoint\.keep: .* or "best", found 0\.'),
    "keep": ({"checkpoint": {"keep": "last"}}, r"checkpoint\.keep: .* found 'last'"),
    "part of a checkpoint": ({"checkpoint": {"keep": 2.5}}, r"^checkpoint\.keep: .*2\.5"),
    "no share": ({"data": {"validation": "0.1.2"}}, r"^data\.validation: .*'0\.1\.2'"),
    "best of nothing": ({"checkpoint": {"keep": "best"}}, r"data\.validation is 0: keep some"),
    "randaugment": ({"data": {"randaugment": 11}}, r"^data\.randaugment: .*\(found 11\)"),
    "cutout": ({"data": {"cutout": -1}}, r"^data\.cutout: .*\(found -1\)"),
    "mixup": ({"data": {"mixup": float("inf")}}, r"^data\.mixup: inf is not a finite number"),
    "ema": ({"train": {"ema": 1.0}}, r"^train\.ema: .*less than 1 \(found 1\.0\)"),
    "nesterov": (
        {"optimizer": {"momentum": 0}},
        r"needs optimizer\.momentum above 0: raise it, or",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_is_refused_by_name(kind: str) -> None:
    tree, message = REFUSED[kind]
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict(tree)


@pytest.mark.parametrize("tree", [None, 3, ["train"]])
def test_what_is_no_table_is_refused(tree: Any) -> None:
    with pytest.raises(RecipeError, match="give sections of keys"):
        Recipe.from_dict(tree)


def test_a_recipe_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().train.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("setting", "section", "key", "value"),
    [
        ("train.epochs=3", "train", "epochs", 3),
        (" train.epochs = 3 ", "train", "epochs", 3),
        ("optimizer.lr=1e-3", "optimizer", "lr", 1e-3),
        ("optimizer.name=adamw", "optimizer", "name", "adamw"),
        ('optimizer.name="adamw"', "optimizer", "name", "adamw"),
        ("data.flip=true", "data", "flip", True),
        ("split.cuts=[2, 4, 6]", "split", "cuts", (2, 4, 6)),
    ],
)
def test_a_setting_is_a_toml_value_or_its_text(setting, section, key, value) -> None:
    for recipe in (Recipe().with_settings([setting]), load_recipe("digits-resnet", [setting])):
        assert getattr(getattr(recipe, section), key) == value


def test_settings_reach_options_and_overrides_and_the_last_one_counts() -> None:
    settings = ["model.width=8", "optimizer.blocks.1.lr=0.5", "train.seed=1", "train.seed=2"]
    recipe = load_recipe("digits-resnet", settings)
    assert recipe.model.options["width"] == 8
    assert recipe.optimizer.blocks[1].lr == 0.5
    recipe = recipe.with_settings(["schedule.blocks.0.warmup_epochs=2"])
    assert recipe.schedule.of_block(0).warmup_epochs == 2
    assert read_back(recipe) == recipe
    assert recipe.train.seed == 2


@pytest.mark.parametrize("recipe", ["cifar10-resnet32-quick", "cifar10-vit-context-heads"])
def test_another_method_has_none_of_the_options_of_the_one_before(recipe: str) -> None:
    loaded = load_recipe(recipe, ["method.context=R1", "method.auxiliary_options.depth=1"])
    assert loaded.method.options["context"] == "R1"
    settings = ["method.exits=linear", "method.name=backprop"]
    for other in (load_recipe(recipe, settings), loaded.with_settings(settings)):
        assert other.method.model_dump(exclude_none=True) == {"name": "backprop", "exits": "linear"}
    same = loaded.with_settings(["method.name=contsup"])
    assert same.method == loaded.method


def test_a_section_that_is_set_has_nothing_of_the_one_before() -> None:
    settings = ['model={name = "vit-tiny"}', "model.dropout=0.5"]
    model = load_recipe("digits-resnet", settings).model
    assert model.model_dump(exclude_unset=True) == {"name": "vit-tiny", "dropout": 0.5}


def test_a_recipe_that_extends_another_may_have_another_method(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "cifar10-resnet32-quick"\n[method]\nname = "greedy"\n')
    assert load_recipe(str(path)).method.model_dump(exclude_none=True) == {"name": "greedy"}
    path.write_text('extends = "cifar10-resnet32-quick"\n[method]\ncontext = "R1"\n')
    assert load_recipe(str(path)).method.auxiliary == "auglocal"


def test_a_dump_with_all_that_was_not_given_reads_back() -> None:
    settings = ["schedule.blocks.0.warmup_epochs=2", "optimizer.blocks.1.lr=0.5", "split.blocks=3"]
    recipe = Recipe().with_settings([*settings, "split.cuts=[2, 4]", "data.root=here"])
    tree = recipe.model_dump(mode="json")
    assert tree["schedule"]["blocks"]["0"]["name"] is None
    assert Recipe.from_dict(tree) == Recipe.from_dict(json.loads(json.dumps(tree))) == recipe


SWITCHES = {
    *("data.drop_last", "data.flip", "optimizer.nesterov", "optimizer.decay_all"),
    *("train.deterministic", "train.compile", "train.tf32", "train.channels_last"),
    *("optimizer.fused", "track.tensorboard", "train.cuda_graphs", "runtime.concurrent_blocks"),
    *("split.untie", "train.activation_checkpointing", "track.batch_ends"),
}
KEYS = {f"{s}.{k}" for s, section in Recipe() for k in type(section).model_fields}


@pytest.mark.parametrize("key", sorted(KEYS - SWITCHES))
@pytest.mark.parametrize("value", ["true", "false", "[true, 2, 3]"])
def test_true_is_no_number(key: str, value: str) -> None:
    with pytest.raises(RecipeError, match=rf"^{re.escape(key)}: must not be true or false, found"):
        Recipe().with_settings([f"{key}={value}"])


@pytest.mark.parametrize("key", sorted(SWITCHES))
def test_a_switch_is_true_or_false(key: str) -> None:
    fixed = {"train.deterministic": "true", "train.compile": "false"}
    fixed |= {"runtime.concurrent_blocks": "false"}
    for value in {fixed[key]} if key in fixed else ("true", "false"):
        section, _, name = key.partition(".")
        recipe = Recipe().with_settings([f"{key}={value}"])
        assert getattr(getattr(recipe, section), name) is (value == "true")


@pytest.mark.parametrize("setting", ["", "a", "=1", "train..epochs=1", ".epochs=1"])
def test_a_setting_that_cannot_be_read_is_refused(setting: str) -> None:
    with pytest.raises(RecipeError, match=r"cannot read the setting .* write SECTION\.KEY=VALUE"):
        Recipe().with_settings([setting])


@pytest.mark.parametrize("replicas", ["2", "[2]", "[2, 2, 2, 2]"])
def test_equal_numbers_of_replicas_are_one_for_all(replicas: str) -> None:
    recipe = Recipe().with_settings([f"train.replicas={replicas}"])
    assert (recipe.train.replicas, recipe.block_replicas) == (2, (2, 2, 2, 2))


def test_a_value_has_no_keys() -> None:
    with pytest.raises(RecipeError, match="'epochs' is a value, not a section"):
        load_recipe("digits-resnet", ["train.epochs.x=1"])


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_parse_and_read_back(name: str) -> None:
    recipe = load_recipe(name)
    assert read_back(recipe) == recipe


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits-resne", r"Did you mean 'digits-resnet'\? .* a file ends in \.toml"),
        ("svhn-vit-grredy", r"Did you mean 'svhn-vit-greedy'"),
        ("mine", r"Did you mean the file mine\.toml\?"),
        ("scpl", r"It is a method; .*--set method\.name=scpl"),
        ("imagenet", r"Known are cifar10-\.\.\. \(\d+\), digits-\.\.\. \(\d+\)"),
        ("mien.toml", r"there is no recipe file mien\.toml\. Did you mean mine\.toml\?"),
        ("digits-vit.toml", r"The shipped recipe is called digits-vit, without \.toml"),
        ("runs/mine", r"It is a run folder; its recipe is runs/mine/config\.toml\."),
        ("runs", r"unknown recipe 'runs'\. It is a folder\."),
        ("folder/other.toml", r"no recipe file folder/other\.toml\. Write it, with a first line"),
    ],
)
def test_an_unknown_recipe_names_what_may_be_meant(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").touch()
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "config.toml").touch()
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(name)
    assert len(str(caught.value)) < 300


def test_a_name_that_no_file_can_have_is_unknown() -> None:
    with pytest.raises(RecipeError, match="unknown recipe 'xxx"):
        load_recipe("x" * 252)  # a file name of 256 bytes with .toml


def test_recipes_in_a_circle_are_each_named_once(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "b.toml"')
    (tmp_path / "b.toml").write_text('extends = "b.toml"')
    with pytest.raises(RecipeError, match=r"^\S*b\.toml extends \S*b\.toml: that is a circle"):
        load_recipe(tmp_path / "a.toml")


def test_who_extends_what_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "digits-resnets"')
    with pytest.raises(RecipeError, match=r"^\S*a\.toml: extends: unknown recipe 'digits-resnets'"):
        load_recipe(tmp_path / "a.toml")


def test_a_recipe_file_is_read_and_named_in_errors(tmp_path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nepochs = 7\n")
    assert load_recipe(path).train.epochs == 7
    path.write_text("[train]\nepochs = 0\n")
    with pytest.raises(RecipeError, match=r"mine\.toml: train\.epochs"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[train", r"mine\.toml is not TOML: .*\)\.$"),
        (b"\xff", r"cannot read the recipe .*mine\.toml: it holds no text\.$"),
        (None, r"no recipe file .*mine\.toml\. Write it"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, content, message) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_a_file_that_is_no_recipe_is_told_what_one_is(tmp_path: Path) -> None:
    for name, content in {"notes.md": b"Notes", "model.safetensors": b"\xa0"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            RecipeError, match=r"A recipe is a \.toml file of sections, as \[train\]"
        ):
            load_recipe(tmp_path / name)


def read_back(recipe: Recipe) -> Recipe:
    return Recipe.from_dict(tomllib.loads(recipe.to_toml()))


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
options = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(-1e300, 1e300), texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
names = st.from_regex(r"x_[a-z0-9_]{1,8}", fullmatch=True)
recipes = st.fixed_dictionaries(
    {
        "data": st.fixed_dictionaries(
            {"validation": st.integers(1, 99) | st.floats(0, 0.9), "name": texts},
            optional={"train_limit": st.integers(1, 10**12), "test_limit": st.integers(1, 9)},
        ),
        "model": st.dictionaries(names, options, max_size=3),
        "split": st.just({"blocks": 3, "cuts": [2, 5]}) | st.just({"blocks": 3}),
        "optimizer": st.fixed_dictionaries(
            {
                "lr": st.floats(1e-300, 1e300),
                "blocks": st.dictionaries(
                    st.sampled_from("012"), st.just({"lr": 1e-5}) | st.just({"weight_decay": 0})
                ),
            }
        ),
        "runtime": st.just({"devices": ["cpu", "cuda:1"]}) | st.just({"devices": "cpu"}),
    }
)


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(recipes)
def test_toml_reads_back_to_an_equal_recipe(tree: dict[str, Any]) -> None:
    recipe = Recipe.from_dict(tree)
    assert read_back(recipe) == recipe
    assert Recipe.from_dict(recipe.model_dump(mode="json")) == recipe


def test_a_home_folder_is_found_in_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    recipe = Recipe.from_dict({"data": {"root": "~/images"}, "model": {"weights": "~/a/run"}})
    paths = recipe.with_absolute_paths()
    assert (paths.data.root, paths.model.weights) == (
        Path("/home/me/images"),
        Path("/home/me/a/run"),
    )
    with pytest.raises(RecipeError, match=r"data\.root: ~ in a path .* '~nobody-here/images'"):
        Recipe.from_dict({"data": {"root": "~nobody-here/images"}})
