"""What is wrong with a recipe, in words: key, what was found, what is allowed (no torch)."""

from __future__ import annotations

from typing import Final

import pydantic
import pydantic_core

from ppll.errors import unknown_name
from ppll.recipe_text import shown
from ppll.section import Section
from ppll.update_sections import BlockOverride, ScheduleOverride

__all__ = ["explain"]

_OVERRIDES: Final[dict[str, type[Section]]] = {
    "optimizer": BlockOverride,
    "schedule": ScheduleOverride,
}
"""What the key ``blocks`` of a section holds for every block."""
_ALTERNATIVES: Final = ("literal[", "tuple[", "constrained-")
"""How pydantic begins to name one of several kinds of values."""
_PLAIN: Final = ("int", "float", "str")
"""What it calls the others."""


def explain(error: pydantic.ValidationError, recipe: type[Section]) -> str:
    """The first problem of a tree that is no ``recipe``, whose fields are sections."""
    problem = _problem(error)
    whole = [str(part) for part in problem["loc"]]
    # Behind section and key pydantic names the alternative that did not fit.
    behind = [p for p in whole[2:] if not p.startswith(_ALTERNATIVES) and p not in _PLAIN]
    place = whole[:2] + behind
    key = ".".join(place)
    if problem["type"] == "extra_forbidden":
        return _unknown_key(place, recipe)
    if len(place) == 1 and problem["type"] == "model_type":
        return _no_section(key, problem["input"], recipe)
    if (form := _form_of_overrides(place)) is not None and problem["type"] != "value_error":
        return f"{key.removesuffix('.[key]')}: {form} (found {shown(problem['input'])})."
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if problem["type"] == "value_error" else f" (found {shown(problem['input'])})"
    if _is_bare_list(error, problem):
        found += "; a list stands in brackets, as in [1, 2]"
    return f"{key}: {message}{found}." if key else f"{message}{found}."


def _problem(error: pydantic.ValidationError) -> pydantic_core.ErrorDetails:
    """The first problem; of what is a list, the first with its items."""
    first, *others = error.errors()
    alike = [other for other in others if other["loc"][:2] == first["loc"][:2]]
    if isinstance(first["input"], list | tuple):
        return next((e for e in alike if any(_is_list(part) for part in e["loc"])), first)
    return first


def _is_bare_list(error: pydantic.ValidationError, problem: pydantic_core.ErrorDetails) -> bool:
    """Whether there is text with commas where a list may stand."""
    is_text = isinstance(problem["input"], str) and "," in problem["input"]
    kinds = {e["type"] for e in error.errors() if e["loc"][:2] == problem["loc"][:2]}
    return is_text and "tuple_type" in kinds


def _is_list(part: int | str) -> bool:
    return isinstance(part, str) and part.startswith("tuple[")


def _form_of_overrides(place: list[str]) -> str | None:
    """How a block is to be different, where something else stands there; else none."""
    is_short = len(place) < 4 or place[-1] == "[key]"
    if place[1:2] != ["blocks"] or place[0] not in _OVERRIDES or not is_short:
        return None
    keys = ", ".join(_OVERRIDES[place[0]].model_fields)
    return f"write {place[0]}.blocks.INDEX.KEY, with a block's index from 0 and one of {keys}"


def _unknown_key(place: list[str], recipe: type[Section]) -> str:
    """What to say of a key that is none, or stands at the wrong place."""
    if len(place) > 1:
        return unknown_name("key", ".".join(place), _sibling_keys(place, recipe))
    key = place[0]
    section, _, name = key.partition(".")
    if section in recipe.model_fields and name:  # the form of --set, in a dictionary
        return (
            f"unknown key {key!r}. A section is a dictionary: {{{section!r}: {{{name!r}: ...}}}}."
        )
    homes = [f"{home}.{key}" for home in recipe.model_fields if key in _keys_of(home, recipe)]
    if homes:
        return f"unknown key {key!r}. Did you mean {' or '.join(homes)}?"
    return unknown_name("key", key, recipe.model_fields)


def _no_section(name: str, found: object, recipe: type[Section]) -> str:
    """What to say of a value that stands where a section of keys should."""
    is_name = isinstance(found, str) and "name" in _keys_of(name, recipe)
    key, value = ("name", shown(found)) if is_name else ("KEY", "VALUE")
    return (
        f"{name}: is a section of keys, found {shown(found)}: write {name}.{key}={value}, or "
        f"{{{name!r}: {{{key!r}: {value}}}}} in Python."
    )


def _sibling_keys(place: list[str], recipe: type[Section]) -> list[str]:
    """Keys that may stand where an unknown one was found."""
    if place[0] in _OVERRIDES and place[1] == "blocks" and len(place) > 2:
        return [".".join([*place[:-1], name]) for name in _OVERRIDES[place[0]].model_fields]
    return [f"{place[0]}.{name}" for name in _keys_of(place[0], recipe)]


def _keys_of(name: str, recipe: type[Section]) -> list[str]:
    """The keys of a section."""
    section = recipe.model_fields[name].annotation
    assert isinstance(section, type)
    assert issubclass(section, Section)
    return list(section.model_fields)
