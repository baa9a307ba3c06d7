"""Commands that say what there is: methods, models, data sets, recipes, this machine (no torch)."""

from __future__ import annotations

from rich.console import Console

from ppll.cli.options import Json, give_json, give_rows

__all__ = ["list_datasets", "list_methods", "list_models", "list_recipes", "show_environment"]


def list_methods(json: Json = None) -> None:
    """List the methods of local learning and what they ask for."""
    from ppll.zoo import as_table, describe_methods

    rows = describe_methods()
    if not give_json(json, {"rows": rows}):
        give_rows("Methods", as_table(rows), None)


def list_models(json: Json = None) -> None:
    """List the networks."""
    from ppll.models import models
    from ppll.models.libraries import LIBRARIES

    rows = [{"name": e.name, "summary": e.summary, "options": sorted(e.options)} for e in models]
    for library, (_, summary) in LIBRARIES.items():
        rows.append({"name": f"{library}:NAME", "summary": summary, "options": ["of the library"]})
    give_rows("Models", rows, json)


def list_datasets(json: Json = None) -> None:
    """List the data sets."""
    from ppll.data import datasets

    rows = [{"name": e.name, "summary": e.summary, "options": sorted(e.options)} for e in datasets]
    give_rows("Data sets", rows, json)


def list_recipes(json: Json = None) -> None:
    """List the shipped recipes."""
    from ppll.recipe_files import load_recipe, shipped_recipes

    recipes = {name: load_recipe(name) for name in sorted(shipped_recipes())}
    rows = [
        {
            "name": name,
            "data": r.data.name,
            "model": r.model.name,
            "method": r.method.name,
            "blocks": r.split.blocks,
            "epochs": r.train.epochs,
        }
        for name, r in recipes.items()
    ]
    give_rows("Recipes", rows, json)


def show_environment(json: Json = None) -> None:
    """Print what a bug report needs."""
    from ppll.environment import describe_environment

    described = describe_environment()
    if not give_json(json, described):
        for key, value in described.items():
            Console().print(f"[bold]{key}[/bold]: {value}", soft_wrap=True)
