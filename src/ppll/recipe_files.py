"""Recipes in files, and those that come with the package (no torch).

A recipe may begin with ``extends = "OTHER"``, the name of a shipped recipe or a file beside it, and
then gives only the keys that differ. Another method has none of the options of the one before.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, Final

from ppll.config import Recipe
from ppll.errors import RecipeError, unknown_name
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
    if len(chain) > _LONGEST_CHAIN:
        raise RecipeError(
            f"{' extends '.join(chain)}: that is more than {_LONGEST_CHAIN} recipes, or a circle."
        )
    try:
        tree = read_toml(_recipe_text(recipe))
    except ValueError as error:
        raise RecipeError(f"{recipe} is not TOML: {error}.") from None
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
    try:
        if path.suffix == ".toml" or path.is_file():
            return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot read the recipe {recipe!s:.200}: {error!s:.200}.") from None
    shipped = shipped_recipes()
    if str(recipe) not in shipped:
        message = unknown_name("recipe", str(recipe), shipped)
        raise RecipeError(f"{message} A recipe file ends in .toml.")
    return shipped[str(recipe)]
