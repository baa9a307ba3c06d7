"""The runs that a study is made of.

A study is a folder. Every run lies in it as ``<recipe>/<method>/seed-K``, with what a grid sets
behind the method (``dgl,optimizer.lr=0.1``): an ordinary run folder, with what its process printed
beside it. So a study needs no memory of its own: what is done is what these folders hold.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ppll.blocks.blueprint import build_method
from ppll.checkpoints.resume import changes, training_sections
from ppll.config import Recipe
from ppll.errors import RecipeError, UsageError
from ppll.recipe_files import load_recipe
from ppll.run_folder import RunFolder
from ppll.sections import MethodConfig

__all__ = [
    "StudyRun",
    "check_same_recipe",
    "grid_points",
    "left_out",
    "list_runs",
    "split_methods",
]

_COMMA: Final = re.compile(r",(?![^\[{]*[\]}])")
"""A comma outside brackets."""
_OPTION: Final = re.compile(r"\s*[\w.-]+=")
_INSTEAD: Final = {"train.seed": "--seeds", "method.name": "--methods"}
"""What gives a row several values of a key."""
_METHOD: Final = re.compile(r"(?P<name>[^=,\s]+?)(?::(?P<options>[\w.-]+=.*))?")


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
        recipe_name: What its recipe is called.
        method: Its method as the study names it, options included.
        recipe: What is trained, by which seed.
        folder: Where.
        point: What the study's grid sets for it, ``SECTION.KEY=VALUE`` each.
    """

    recipe_name: str
    method: str
    recipe: Recipe
    folder: RunFolder
    point: tuple[str, ...] = ()

    @property
    def seed(self) -> int:
        """What tells it from the other runs of its row."""
        return self.recipe.train.seed

    @property
    def row(self) -> tuple[str, ...]:
        """What it shares with runs that differ in seed only."""
        return self.recipe_name, self.method, *self.point

    @property
    def name(self) -> str:
        """What people read."""
        return f"{' '.join(self.row)} seed {self.seed}"

    @property
    def log(self) -> Path:
        """What its process printed when it ran last."""
        return self.folder.path.with_suffix(".log")

    @property
    def setting(self) -> dict[str, Any]:
        """What it shares with runs that differ in seed and method only."""
        sections = training_sections(self.recipe)
        del sections["method"], sections["split"], sections["train"]["seed"]
        return sections


def split_methods(texts: Iterable[str]) -> list[str]:
    """Methods as ``--methods`` gives them, one by one.

    ``"dgl,infopro:objective=contrast,auxiliary=linear"`` holds two: what begins with ``KEY=``
    belongs to the method before it. A comma in brackets separates nothing.

    Raises:
        UsageError: One cannot be read, or is named twice.
    """
    methods: list[str] = []
    for part in _COMMA.split(",".join(texts)):
        if methods and _OPTION.match(part):
            methods[-1] += f",{part.strip()}"
        else:
            methods.append(part.strip())
    for method in methods:
        _read_method(method)
    _check_each_once("method", methods)
    return methods


def _read_method(text: str) -> tuple[str, list[str]]:
    """Name and options of a method."""
    found = _METHOD.fullmatch(text)
    if found is None:
        raise UsageError(
            f"cannot read the method {text!r}: write NAME or NAME:KEY=VALUE,KEY=VALUE, and a "
            f"comma between two methods, as in backprop,infopro:objective=contrast."
        )
    return found["name"], _COMMA.split(found["options"]) if found["options"] else []


def grid_points(texts: Iterable[str]) -> list[tuple[str, ...]]:
    """Every combination of values as ``--grid`` gives them, each as settings.

    ``"optimizer.lr=0.05,0.1"`` holds two values. A comma in brackets separates nothing. Without a
    grid there is one point, which sets nothing.

    Raises:
        UsageError: One cannot be read, or something is named twice.
    """
    axes = [_read_axis(text) for text in texts]
    _check_each_once("key of a grid", [axis[0].partition("=")[0] for axis in axes])
    points = list(itertools.product(*axes))
    _check_each_once("point of a grid", [_folder_name(",".join(point)) for point in points])
    return points


def _read_axis(text: str) -> list[str]:
    """The settings that give a key its values."""
    key, _, values = (part.strip() for part in text.partition("="))
    found = [value.strip() for value in _COMMA.split(values)]
    if not key or not all(found):
        raise UsageError(
            f"cannot read the grid {text!r}: write SECTION.KEY=VALUE,VALUE, as in "
            f"optimizer.lr=0.05,0.1."
        )
    if key in _INSTEAD:
        raise UsageError(f"a grid cannot be of {key}: give {_INSTEAD[key]} instead.")
    return [f"{key}={value}" for value in found]


def _check_each_once(kind: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{kind} {name!r} is named {names.count(name)} times: name it once.")


def list_runs(
    recipes: Sequence[str],
    methods: Sequence[str],
    num_seeds: int,
    settings: Sequence[str],
    out: Path,
    points: Sequence[tuple[str, ...]] = ((),),
) -> list[StudyRun]:
    """All runs of a study in the order in which they are trained: the first seed of every row
    first.

    Args:
        recipes: Recipe files or names of shipped ones.
        methods: What each is trained by; its own method where there is none.
        num_seeds: Runs of each; their seeds count up from the recipe's.
        settings: What ``--set`` gives, for all.
        out: The study's folder.
        points: What a grid sets besides, of which each is a row of its own.

    Raises:
        UsageError: A recipe, method or setting cannot be, or two are the same.
    """
    _check_each_once("recipe", [Path(recipe).stem for recipe in recipes])
    _check_each_once("method", [_folder_name(method) for method in methods])
    named: Sequence[str | None] = [*methods] or [None]
    rows = [
        (Path(name).stem, method or recipe.method.name, point, recipe)
        for name in recipes
        for method in named
        for point in points
        for recipe in [_recipe_of(name, method, settings, point)]
    ]
    return [
        StudyRun(
            name,
            method,
            recipe.with_settings([f"train.seed={recipe.train.seed + index}"]),
            RunFolder(_row_path(out, name, method, point) / f"seed-{recipe.train.seed + index}"),
            point,
        )
        for index in range(num_seeds)
        for name, method, point, recipe in rows
    ]


def _row_path(out: Path, recipe: str, method: str, point: Sequence[str]) -> Path:
    return out.absolute() / recipe / _folder_name(",".join([method, *point]))


def left_out(runs: Sequence[StudyRun], out: Path) -> list[str]:
    """Recipes and methods that a study's folder has runs of, besides those of ``runs``."""
    asked = {run.folder.path.parent for run in runs}
    found = {config.parent.parent for config in out.absolute().glob("*/*/seed-*/config.toml")}
    return sorted(str(folder.relative_to(out.absolute())) for folder in found - asked)


def _folder_name(method: str) -> str:
    return re.sub(r"[^\w.=,+-]+", "-", method)


def _recipe_of(
    name: str, method: str | None, settings: Sequence[str], point: Sequence[str]
) -> Recipe:
    """What a row trains: a recipe by its own method, or by another one."""
    if method is None:
        return _placed(load_recipe(name, [*settings, *point]))
    return _placed(_with_method(load_recipe(name), method, settings, point))


def _with_method(
    recipe: Recipe, method: str, settings: Sequence[str], point: Sequence[str]
) -> Recipe:
    """Another method has other options, so the recipe's own go; those of the study come last."""
    name, options = _read_method(method)
    if name != recipe.method.name:
        recipe = recipe.model_copy(update={"method": MethodConfig(name=name)})
    own = [f"method.name={name}", *(f"method.{option.strip()}" for option in options)]
    return recipe.with_settings([*settings, *own, *point])


def _placed(recipe: Recipe) -> Recipe:
    """The recipe with what a trainer would write into it, on as many stages as it can have."""
    if (weights := recipe.model.weights) is not None:
        model = recipe.model.model_copy(update={"weights": weights.absolute()})
        recipe = recipe.model_copy(update={"model": model})
    if build_method(recipe).end_to_end:  # It has one block; the result does not depend on it.
        return recipe.with_settings(["runtime.stages=1"])
    return recipe


def check_same_recipe(run: StudyRun) -> None:
    """Refuse a run that was trained by another recipe than the study asks for now.

    Raises:
        RecipeError: It was.
        RunFolderError: Its folder holds something else.
    """
    if not run.folder.config.is_file():
        run.folder.check_free()
        return
    before = training_sections(run.folder.read_recipe())
    found = changes(before, training_sections(run.recipe))
    if found:
        listed = "\n".join(f"  {change}" for change in found)
        raise RecipeError(
            f"{run.folder.path} was trained by another recipe:\n{listed}\nGive the study the old "
            f"values, or another --out."
        )
