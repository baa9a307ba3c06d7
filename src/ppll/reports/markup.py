"""HTML and SVG as text in which nothing from outside can be anything but text (no torch).

What a run folder holds may come from a stranger. So elements are made here only, and every child
or attribute that is not an element made here is escaped.
"""

from __future__ import annotations

import html
import re
from typing import Final

__all__ = ["Markup", "style_sheet", "tag"]

_VOID: Final = ("meta",)
_NAME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")
_FORBIDDEN: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is HTML already; only this module makes some."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element.

    Args:
        name: Of the element.
        children: Elements; everything else becomes text. None is left out.
        attributes: Values become text; None is left out. A trailing underscore of a name falls
            away (``class_``), another one becomes a hyphen.

    Example:
        >>> str(tag("p", "a < b", tag("b", 1), class_="x"))
        '<p class="x">a &lt; b<b>1</b></p>'
    """
    assert _NAME.fullmatch(name), name
    given = {key: value for key, value in attributes.items() if value is not None}
    listed = "".join(f' {_attribute(key)}="{_text(value)}"' for key, value in given.items())
    if name in _VOID:
        return Markup(f"<{name}{listed}>")
    content = "".join(_content(child) for child in children if child is not None)
    return Markup(f"<{name}{listed}>{content}</{name}>")


def style_sheet(text: str) -> Markup:
    """A style sheet of our own; its text is not escaped, so none from outside may be in it."""
    assert "<" not in text
    return Markup(f"<style>{text}</style>")


def _attribute(key: str) -> str:
    name = key.rstrip("_").replace("_", "-")
    assert _NAME.fullmatch(name), name
    return name


def _content(child: object) -> str:
    return child if isinstance(child, Markup) else _text(child)


def _text(value: object) -> str:
    return html.escape(_FORBIDDEN.sub("\ufffd", str(value)))
