"""What several commands share: options, loading a recipe, printing rows (no torch)."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console

from ppll.errors import UsageError
from ppll.tables import print_table

if TYPE_CHECKING:
    from ppll.config import Recipe

__all__ = [
    "Best",
    "Json",
    "RecipeArgument",
    "Settings",
    "Stages",
    "Step",
    "as_json",
    "bytes_of",
    "give_json",
    "give_rows",
    "load",
    "with_json_printed",
]

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe file (.toml), or the name of a shipped recipe.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change one key of the recipe; may be given many times.",
    ),
]
Stages = Annotated[
    int | None,
    typer.Option("--stages", min=1, help="Number of stages; the result does not depend on it."),
]
Best = Annotated[
    bool,
    typer.Option(
        "--best", help="The checkpoint with the best validation accuracy, not the newest."
    ),
]
Step = Annotated[
    int | None,
    typer.Option(
        "--step", min=0, help="The checkpoint after so many training batches, not the newest."
    ),
]
Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="[FILE.json]", help="Print JSON, or write it to a file."),
]

_PRINTED: Final = "-"


def load(recipe: str, stages: int | None, settings: list[str] | None) -> Recipe:
    """The recipe that a command names, with its settings."""
    from ppll.recipe_files import load_recipe

    settings = list(settings or [])
    if stages is not None:
        settings.append(f"runtime.stages={stages}")
    return load_recipe(recipe, settings)


def bytes_of(option: str, mib: float) -> int:
    """What an option in MiB says.

    Raises:
        RecipeError: It is negative, infinite or no number.
    """
    from ppll.simulation.links import check_amount

    check_amount(option, mib)
    return int(mib * 2**20)


def with_json_printed(arguments: Sequence[str]) -> list[str]:
    """Arguments in which a ``--json`` that no file follows says that it is to be printed."""
    following = itertools.chain(arguments[1:], [""])
    return [
        f"--json={_PRINTED}" if word == "--json" and not after.endswith(".json") else word
        for word, after in zip(arguments, following, strict=False)
    ]


def as_json(tree: Any) -> str:
    """A tree as JSON for people, too."""
    return json.dumps(tree, indent=2) + "\n"


def give_json(file: Path | None, tree: Any) -> bool:
    """Print a tree as JSON or write it to a file; whether it was printed, so nothing else is."""
    if file is None:
        return False
    text = as_json(tree)
    if str(file) == _PRINTED:
        sys.stdout.write(text)
        return True
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}.") from None
    return False


def give_rows(title: str, rows: list[dict[str, Any]], file: Path | None) -> None:
    """Print rows as a table, unless they are printed as JSON."""
    if give_json(file, {"rows": rows}):
        return
    names = list(rows[0]) if rows else []
    cells = [[_cell(value) for value in row.values()] for row in rows]
    print_table(Console(), names, cells, left=names, title=title)


def _cell(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
