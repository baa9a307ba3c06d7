"""Writes ``docs/recipe.md``, every key of a recipe: ``python -m tests.recipe_page``."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from ppll.config import Recipe
from ppll.data import datasets
from ppll.methods import methods
from ppll.models import models
from ppll.registry import Entry, Registry
from ppll.section import Section

PAGE = Path(__file__).parents[1] / "docs" / "recipe.md"
SHELVES: dict[str, Registry[Any]] = {"data": datasets, "model": models, "method": methods}
LARGEST = 2**63
KEYS = ("key", "allowed", "default", "is")
KINDS = {bool: "`true`, `false`", str: "text", Path: "path", int: "whole number", float: "number"}

HEAD = """\
# Every key of a recipe

A recipe is TOML: a section in brackets, then its keys. What is not given has the default below;
`extends = "digits-resnet"` in the first line takes the rest from another recipe instead. On the
command line `--set SECTION.KEY=VALUE` changes one key; in Python a recipe is a dictionary of
dictionaries. A key that is not here is refused. `config.toml` in a run folder is the whole recipe.

```toml
extends = "digits-resnet"

[train]
epochs = 3

[optimizer]
blocks.0.lr = 0.05    # another learning rate for block 0
```

What stands under `runtime`, `checkpoint` and `track` never changes what is trained.

This page is written by `python -m tests.recipe_page` from the code that checks recipes.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, field in Recipe.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, Section)
        parts += [f"\n## {name}\n\n{inspect.getdoc(section)}\n\n{table(KEYS, of_section(section))}"]
        if name in SHELVES:
            parts.append(options(name, SHELVES[name]))
    return "".join(parts)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def of_section(section: type[Section], prefix: str = "") -> Iterator[tuple[str, ...]]:
    for key, field in section.model_fields.items():
        override = override_of(field)
        if override is None:
            yield (f"`{prefix}{key}`", allowed(field.annotation, field.metadata), *told(field))
        else:
            yield from of_section(override, prefix=f"{key}.INDEX.")


def told(field: FieldInfo) -> tuple[str, str]:
    assert field.description, f"{field} says nothing of itself"
    return shown(field.default), " ".join(field.description.split()).replace("``", "`")


def override_of(field: FieldInfo) -> type[Section] | None:
    """What a table by block index holds; none where the key is another."""
    values = get_args(field.annotation)
    found = values[1] if get_origin(field.annotation) is dict else None
    return found if isinstance(found, type) and issubclass(found, Section) else None


def allowed(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """A type as people say it."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        extra = [m for p in parts[1:] for m in (p.metadata if isinstance(p, FieldInfo) else [p])]
        return allowed(parts[0], extra)
    if origin in (Union, UnionType):
        return " or ".join(allowed(part) for part in parts if part is not NoneType)
    if origin is Literal:
        return ", ".join(shown(value) for value in parts)
    if origin is tuple:
        return f"list: {allowed(parts[0])}"
    if origin in (dict, Mapping):
        return "table"
    return KINDS[annotation] + bounds(list(metadata))


def bounds(metadata: list[Any]) -> str:
    words = []
    for mark in metadata:
        match mark:
            case Ge(ge=least):
                words.append(f"{least} or more")
            case Gt(gt=least):
                words.append(f"above {least}")
            case Le(le=most):
                words.append(f"at most {most}")
            case Lt(lt=most) if most != LARGEST:
                words.append(f"below {most}")
            case _:
                pass
    return f", {', '.join(words)}" if words else ""


def shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def options(section: str, shelf: Registry[Any]) -> str:
    """What the things of a shelf take besides."""
    named = (f"`{section}.name`", "key", "allowed", "default", "is")
    rows = [row for entry in shelf for row in of_entry(entry, list(shelf))]
    return f"\nMore keys by {shelf.kind}:\n\n{table(named, rows)}"


def of_entry(entry: Entry[Any], shelf: list[Entry[Any]]) -> Iterator[tuple[str, ...]]:
    hints = typing.get_type_hints(
        entry.build.__init__ if inspect.isclass(entry.build) else entry.build
    )
    for option, default in entry.options.items():
        # A network of a fixed size says nothing of what it shares with the one of any size.
        alike = [e for e in shelf if e.build.__module__ == entry.build.__module__]
        found = [e.meanings[option] for e in (entry, *alike) if option in e.meanings]
        given = "must be given" if default is ... else shown(default)
        meaning = found[0].replace("``", "`")
        yield (f"`{entry.name}`", f"`{option}`", allowed(hints[option]), given, meaning)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
