"""What a program gives a run: a recipe in any form, and what no recipe can name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppll.config import Recipe
from ppll.data import OWN_DATA, Dataset
from ppll.errors import DataError
from ppll.models import OWN_MODEL
from ppll.recipe_files import load_recipe
from ppll.sections import DataConfig

__all__ = ["as_recipe", "check_dataset", "with_own_data"]


def as_recipe(given: Recipe | Mapping[str, Any] | str | Path, *, own_model: bool) -> Recipe:
    """The recipe of a run.

    Args:
        given: A recipe, the sections of one, a recipe file, or the name of a shipped one.
        own_model: Whether the network is given from Python, whatever the recipe names.

    Raises:
        RecipeError: It is no recipe.
    """
    if isinstance(given, str | Path):
        given = load_recipe(given)
    elif not isinstance(given, Recipe):
        given = Recipe.from_dict(given)
    # Other processes, and a later look at the run, may stand in another folder.
    recipe = given.with_absolute_paths()
    if not own_model:
        return recipe
    model = recipe.model.model_copy(update={"name": OWN_MODEL})
    return recipe.model_copy(update={"model": model})


def with_own_data(recipe: Recipe) -> Recipe:
    """The recipe of a run whose data is given from Python, without options of a set."""
    kept = recipe.data.model_dump(include=set(DataConfig.model_fields) - {"name", "root"})
    data = DataConfig(name=OWN_DATA, **kept)
    return recipe.model_copy(update={"data": data})


def check_dataset(data: object) -> Dataset | None:
    """What was given as a data set, which may be none.

    Raises:
        DataError: It is something else.
    """
    if data is None or isinstance(data, Dataset):
        return data
    raise DataError(
        f"data must be a ppll.Dataset, found {type(data).__name__}: give "
        f"ppll.Dataset.from_arrays(train=(inputs, targets), test=(inputs, targets)), or "
        f"ppll.Dataset.from_torch(train=..., test=...) of data sets of torch, or name a data set "
        f"of the shelf as data.name in the recipe."
    )
