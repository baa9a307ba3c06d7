"""A method of the user's own: a class that a recipe names by its module, ``"module:Class"``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from ppll.channels.greeting import MAX_CAPACITY
from ppll.data.loader import IMAGE
from ppll.errors import PpllError, RecipeError, unknown_name
from ppll.methods import Method, methods
from ppll.own_class import OwnKind, blamed_on, shown_error
from ppll.registry import Registry

__all__ = ["blamed", "build_own_method"]

_SLOW_FROM: Final = ("last", "next", None)
_LONGEST_LAG: Final = MAX_CAPACITY - 1  # Parameters come over a channel with a slot more.


def build_own_method(name: str, options: Mapping[str, Any]) -> Method:
    """Import the class that is called ``"module:Class"`` and build the method from its options.

    Raises:
        RecipeError: It cannot be imported, is no method, does not take these options, or says of
            itself what no method can.
    """
    kind = OwnKind(
        "method",
        Method,
        "ppll.methods.Method",
        [entry.name for entry in methods],
        "its options are method.KEY=VALUE, in a study {}:KEY=VALUE",
    )
    build = kind.imported(name)
    shelf: Registry[Method] = Registry("method", "method")
    shelf.register(name, "")(build)
    try:
        method = shelf.build(name, options)
    except PpllError:
        raise
    except Exception as error:
        raise RecipeError(
            f"method {name!r} cannot be built from its options: {shown_error(error)}. An option is "
            f"a keyword-only parameter of __init__."
        ) from error
    if (problem := _problem(method)) is not None:
        raise RecipeError(f"method {name!r}: {problem}")
    return method


def _problem(method: Method) -> str | None:
    """What a method says of itself that none can, in words."""
    for key in ("fields", "late_fields"):
        names: object = getattr(method, key)
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            right = repr((names,)) if isinstance(names, str) else "() or a tuple like ('image',)"
            return f"{key} = {names!r} must be a tuple of names: write {right}."
    if unknown := [name for name in method.fields if name != IMAGE]:
        return unknown_name("name in fields", unknown[0], [IMAGE])
    slow_from: object = method.slow_from
    if slow_from not in _SLOW_FROM:
        return f"slow_from = {slow_from!r} must be one of {', '.join(map(repr, _SLOW_FROM))}."
    lag: object = method.lag
    if slow_from is not None and not (isinstance(lag, int) and 1 <= lag <= _LONGEST_LAG):
        return (
            f"slow_from needs a lag of 1 to {_LONGEST_LAG}, found lag = {lag!r}: set it in the "
            f"class, or make it an option, `lag: int = 2` in __init__ and `self.lag = lag`."
        )
    return None


@contextmanager
def blamed(name: str, method: Method, where: str) -> Iterator[None]:
    """Name what a method raises that is the user's own, and the line of its module.

    Raises:
        RecipeError: It raised something that is no error of ours.
    """
    with blamed_on("method.name", name, type(method), where):
        yield
