"""A method of the user's own: a class that a recipe names by its module, ``"module:Class"``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ppll.errors import PpllError, RecipeError
from ppll.methods import Method, methods
from ppll.own_class import OwnKind, blamed_on, shown_error
from ppll.registry import Registry

__all__ = ["blamed", "build_own_method"]


def build_own_method(name: str, options: Mapping[str, Any]) -> Method:
    """Import the class that is called ``"module:Class"`` and build the method from its options.

    Raises:
        RecipeError: It cannot be imported, is no method, or does not take these options.
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
        return shelf.build(name, options)
    except PpllError:
        raise
    except Exception as error:
        raise RecipeError(
            f"method {name!r} cannot be built from its options: {shown_error(error)}. An option is "
            f"a keyword-only parameter of __init__."
        ) from error


@contextmanager
def blamed(name: str, method: Method, where: str) -> Iterator[None]:
    """Name what a method raises that is the user's own, and the line of its module.

    Raises:
        RecipeError: It raised something that is no error of ours.
    """
    with blamed_on("method.name", name, type(method), where):
        yield
