"""Recipes in files, and those that come with the package (no torch).

A recipe may begin with ``extends = "OTHER"``, the name of a shipped recipe or a file beside it, and
then gives only the keys that differ. Another method has none of the options of the one before.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Collection, Iterable
from importlib import resources
from pathlib import Path
from typing import Any, Final

from ppll.config import Recipe
from ppll.errors import RecipeError
from ppll.recipe_text import apply_settings, drop_other_method, read_toml

__all__ = ["load_recipe", "shipped_recipes"]

_LONGEST_CHAIN: Final = 8


def shipped_recipes() -> dict[str, str]:
    """Name and TOML text of every recipe that comes with the package."""
    folder = resources.files("ppll") / "recipes"
    files = [item for item in folder.iterdir() if item.name.endswith(".toml")]
    return {f.name.removesuffix(".toml"): f.read_text(encoding="utf-8") for f in files}


def load_recipe(recipe: str | Path, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe file, or a shipped recipe by name, with settings applied.

    Raises:
        RecipeError: There is no such file or name, it is not TOML, or what it says cannot be.
    """
    tree = _recipe_tree(recipe)
    apply_settings(tree, settings)
    try:
        return Recipe.from_dict(tree)
    except RecipeError as error:
        raise RecipeError(f"{recipe}: {error}") from None


def _recipe_tree(recipe: str | Path, extended_by: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a recipe says, on top of what those that it extends say."""
    chain = (*extended_by, str(recipe))
    if str(recipe) in extended_by:
        circle = " extends ".join(chain[chain.index(str(recipe)) :])
        raise RecipeError(f"{circle}: that is a circle; take one of these extends out.")
    if len(chain) > _LONGEST_CHAIN:
        raise RecipeError(f"{' extends '.join(chain)}: those are more than {_LONGEST_CHAIN}.")
    try:
        tree = read_toml(_recipe_text(recipe))
    except RecipeError as error:
        raise RecipeError(
            f"{extended_by[-1]}: extends: {error}" if extended_by else error
        ) from None
    except ValueError as error:
        raise RecipeError(f"{recipe} is not TOML: {error}.{_what_it_is(recipe)}") from None
    if "extends" not in tree:
        return tree
    base = tree.pop("extends")
    if not isinstance(base, str):
        raise RecipeError(
            f"{recipe}: extends must be the name of a shipped recipe or a file, found {base!r}."
        )
    # A file is looked for beside the one that names it.
    other = str(Path(recipe).parent / base) if base.endswith(".toml") else base
    below = _recipe_tree(other, chain)
    if isinstance(tree.get("method"), dict) and "name" in tree["method"]:
        drop_other_method(below, tree["method"]["name"])
    return _merged(below, tree)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The base with changes on top, key by key."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _merged(below, value)
        merged[key] = value
    return merged


def _recipe_text(recipe: str | Path) -> str:
    path = Path(recipe)
    shipped = shipped_recipes()
    try:
        if path.suffix == ".toml" or path.is_file():
            return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(_no_file(path, shipped)) from None
    except (OSError, ValueError) as error:
        is_binary = isinstance(error, UnicodeDecodeError)
        reason = "it holds no text" if is_binary else getattr(error, "strerror", None) or str(error)
        raise RecipeError(
            f"cannot read the recipe {recipe!s:.200}: {reason:.200}.{_what_it_is(recipe)}"
        ) from None
    if str(recipe) not in shipped:
        raise RecipeError(_no_name(str(recipe), shipped))
    return shipped[str(recipe)]


def _what_it_is(recipe: str | Path) -> str:
    """What a recipe is, where a file is given that was not meant to be one."""
    if Path(recipe).suffix == ".toml":
        return ""
    return (
        " A recipe is a .toml file of sections, as [train], and keys, as epochs = 3, or the name "
        "of a shipped one: ppll recipes lists them."
    )


def _no_file(path: Path, shipped: Collection[str]) -> str:
    """What to say of a recipe file that is not there."""
    beside = [file.name for file in path.parent.glob("*.toml")]
    near = difflib.get_close_matches(path.name, beside, n=1)
    if path.stem in shipped:
        hint = f"The shipped recipe is called {path.stem}, without .toml."
    elif near:
        hint = f"Did you mean {path.with_name(near[0])}?"
    else:
        hint = (
            'Write it, with a first line such as extends = "digits-resnet" and below it only what '
            "differs, or name a shipped recipe: ppll recipes lists them."
        )
    return f"there is no recipe file {path!s:.200}. {hint}"


def _no_name(name: str, shipped: Collection[str]) -> str:
    """What to say of a name that no shipped recipe has."""
    near = difflib.get_close_matches(name, sorted(shipped), n=3, cutoff=0.75)
    config = str(Path(name) / "config.toml")
    # Unlike those of pathlib, these questions have an answer for a name that no file can have.
    if os.path.isfile(f"{name}.toml"):
        hint = f"Did you mean the file {name}.toml?"
    elif os.path.isfile(config):
        hint = f"It is a run folder; its recipe is {config}."
    elif os.path.isdir(name):
        hint = "It is a folder."
    elif _is_method(name):
        hint = f"It is a method; a recipe takes it by --set method.name={name}."
    elif near:
        hint = f"Did you mean {' or '.join(map(repr, near))}?"
    else:
        families = Counter(known.partition("-")[0] for known in shipped)
        kinds = [f"{family}-... ({number})" for family, number in sorted(families.items())]
        hint = f"Known are {', '.join(kinds)}."
    return f"unknown recipe {name!r}. {hint} ppll recipes lists all; a file ends in .toml."


def _is_method(name: str) -> bool:
    from ppll.methods import methods  # needs torch, so only where it is too late to be quick

    return name in {entry.name for entry in methods}
