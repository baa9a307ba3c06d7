"""A recipe as text: settings in, TOML out (no torch)."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Any

from ppll.errors import RecipeError

__all__ = ["apply_setting", "write_toml"]


def apply_setting(tree: dict[str, Any], setting: str) -> None:
    """Change one key of a recipe's tree as ``SECTION.KEY=VALUE`` says.

    A value is read as TOML, or taken as it is where it is none.

    Raises:
        RecipeError: The setting cannot be read, or names a key below a value.
    """
    key, separator, text = setting.partition("=")
    path = key.strip().split(".")
    if not separator or len(path) < 2 or not all(path):
        raise RecipeError(f"cannot read the setting {setting!r}: write SECTION.KEY=VALUE.")
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"cannot set {key!r}: {part!r} is a value, not a section.")
    tree[path[-1]] = _value(text.strip())


def _value(text: str) -> Any:
    """A TOML value, or the text itself where it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def write_toml(tree: Mapping[str, Mapping[str, Any]]) -> str:
    """Sections of keys as TOML; Python's standard library reads it but does not write it."""
    return "\n".join(_toml_section(name, section) for name, section in tree.items())


def _toml_section(name: str, section: Mapping[str, Any]) -> str:
    lines = [f"[{name}]"]
    lines += [f"{k} = {_toml_value(v)}" for k, v in section.items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_toml_value(str(k))} = {_toml_value(v)}" for k, v in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    # TOML knows no surrogate pairs, and wants DEL escaped, which JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
