"""A recipe as text: settings in, TOML out (no torch)."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any, Final

from ppll.errors import RecipeError

__all__ = [
    "apply_settings",
    "check_plain",
    "drop_other_method",
    "read_setting",
    "read_toml",
    "shown",
    "without_none",
    "write_toml",
]

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_DEEPEST: Final = 16
_LONGEST_SHOWN: Final = 200


def read_toml(text: str) -> dict[str, Any]:
    """TOML as nested dictionaries.

    Raises:
        ValueError: It is not TOML, or nests or counts further than anything that is meant.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def without_none(tree: Any, depth: int = 0) -> Any:
    """TOML has no word for none, so a key that is none is one that was not given.

    What nests too deeply for a recipe is left as it is.
    """
    if not isinstance(tree, Mapping) or depth > _DEEPEST:
        return tree
    return {key: without_none(v, depth + 1) for key, v in tree.items() if v is not None}


def check_plain(value: Any, key: str = "", depth: int = 0) -> None:
    """Refuse what would not come back from TOML as it is.

    Raises:
        RecipeError: There is such a value; names its key.
    """
    if isinstance(value, Mapping | list | tuple):
        if depth == _DEEPEST:
            raise RecipeError(f"{key}: it is nested more than {_DEEPEST} deep.")
        for name, inner in _named(value):
            check_plain(name, f"a key of {key or 'the recipe'}", depth)
            check_plain(inner, ".".join(filter(None, [key, name])), depth + 1)
    elif (problem := _problem(value)) is not None:
        raise RecipeError(f"{key}: {problem}.")


def _named(value: Mapping[Any, Any] | list[Any] | tuple[Any, ...]) -> list[tuple[str, Any]]:
    """The parts of a table by their keys; of a list without."""
    if isinstance(value, Mapping):
        return [(str(name), inner) for name, inner in value.items()]
    return [("", inner) for inner in value]


def _problem(value: Any) -> str | None:
    """Why a value has no place in a recipe; none where it has one."""
    if isinstance(value, str | PurePath):
        is_text = not any("\ud800" <= letter <= "\udfff" for letter in str(value))
        return None if is_text else f"{str(value)!r} is no text in UTF-8"
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**63 else "the number has more than 64 bits"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{value} is not a finite number"
    return f"a {_kind(value)} has no place here; {_instead_of(value)}"


def _kind(value: object) -> str:
    if isinstance(value, type):
        return "class"
    return "none" if value is None else type(value).__name__


def _instead_of(value: object) -> str:
    """What to give in the place of what is no part of a recipe."""
    if callable(value):
        named: Any = value if hasattr(value, "__qualname__") else type(value)
        return f'name it, as "{named.__module__}:{named.__qualname__}"'
    if hasattr(value, "tolist"):
        return "give a list, as by .tolist()"
    return "give text, a number, true or false, a list or a table"


def shown(value: Any) -> str:
    """What was found, cut short where it is long."""
    try:
        text = repr(list(value) if isinstance(value, tuple) else value)
    except ValueError:  # Python writes no number of more than some thousand digits.
        return "a number of too many digits"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def drop_other_method(tree: dict[str, Any], name: object) -> None:
    """Take a method's options out of a recipe's tree that is to have another method."""
    method = tree.get("method")
    if isinstance(method, dict) and method.get("name", name) != name:
        del tree["method"]


def apply_settings(tree: dict[str, Any], settings: Iterable[str]) -> None:
    """Change keys of a recipe's tree; another method comes first and without the options of the
    one before.

    Raises:
        RecipeError: A setting cannot be read, or names a key below a value.
    """
    for setting in sorted(settings, key=lambda s: s.partition("=")[0].strip() != "method.name"):
        key, _, text = setting.partition("=")
        if key.strip() == "method.name":
            drop_other_method(tree, _value(text.strip(), setting))
        _apply_setting(tree, setting)


def read_setting(setting: str) -> tuple[str, Any]:
    """Key and value of ``SECTION.KEY=VALUE``.

    A value is read as TOML, or taken as it is where it is none.

    Raises:
        RecipeError: The setting cannot be read.
    """
    key, separator, text = setting.partition("=")
    if not separator or not all(key.strip().split(".")):
        raise RecipeError(f"cannot read the setting {setting!r}: write SECTION.KEY=VALUE.")
    return key.strip(), _value(text.strip(), setting)


def _apply_setting(tree: dict[str, Any], setting: str) -> None:
    """Change one key of a recipe's tree as ``SECTION.KEY=VALUE`` says.

    Raises:
        RecipeError: The setting cannot be read, or names a key below a value.
    """
    key, value = read_setting(setting)
    path = key.split(".")
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"cannot set {key!r}: {part!r} is a value, not a section.")
    tree[path[-1]] = value


def _value(text: str, setting: str) -> Any:
    """A TOML value, or the text itself where it is none."""
    try:
        tree = read_toml(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except ValueError as error:
        raise RecipeError(f"cannot read the setting {setting[:200]!r}: {error}.") from None
    return tree["value"] if len(tree) == 1 else text


def write_toml(tree: Mapping[str, Mapping[str, Any]]) -> str:
    """Sections of keys as TOML; Python's standard library reads it but does not write it."""
    return "\n".join(_toml_section(name, section) for name, section in tree.items())


def _toml_section(name: str, section: Mapping[str, Any]) -> str:
    lines = [f"[{name}]"]
    lines += [f"{_toml_key(k)} = {_toml_value(v)}" for k, v in section.items()]
    return "\n".join(lines) + "\n"


def _toml_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_toml_value(str(k))} = {_toml_value(v)}" for k, v in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    # TOML knows no surrogate pairs, and wants DEL escaped, which JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
