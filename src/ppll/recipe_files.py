"""Recipes in files, and those that come with the package (no torch)."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from ppll.config import Recipe
from ppll.errors import RecipeError, unknown_name
from ppll.recipe_text import apply_setting, read_toml

__all__ = ["load_recipe", "shipped_recipes"]


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
    text = _recipe_text(recipe)
    try:
        tree = read_toml(text)
    except ValueError as error:
        raise RecipeError(f"{recipe} is not TOML: {error}.") from None
    for setting in settings:
        apply_setting(tree, setting)
    try:
        return Recipe.from_dict(tree)
    except RecipeError as error:
        raise RecipeError(f"{recipe}: {error}") from None


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
