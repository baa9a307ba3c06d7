"""A method of the user's own: a class that a recipe names by its module, ``"module:Class"``.

The module is looked for where Python looks for others, and imported by every process that needs it:
to name it is to ask that it be run. Nothing is added to what Python searches.
"""

from __future__ import annotations

import difflib
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from ppll.errors import PpllError, RecipeError, unknown_name
from ppll.methods import Method, methods
from ppll.registry import Registry

__all__ = ["blamed", "build_own_method", "is_own_method"]

_SEPARATOR: Final = ":"


def is_own_method(name: str) -> bool:
    """Whether a name is that of a class in a module, not one of the shelf; those have no dot."""
    return _SEPARATOR in name or "." in name


def build_own_method(name: str, options: Mapping[str, Any]) -> Method:
    """Import the class that is called ``"module:Class"`` and build the method from its options.

    Raises:
        RecipeError: It cannot be imported, is no method, or does not take these options.
    """
    build = _imported_class(name)
    shelf: Registry[Method] = Registry("method", "method")
    shelf.register(name, "")(build)
    try:
        return shelf.build(name, options)
    except PpllError:
        raise
    except Exception as error:
        raise RecipeError(
            f"method {name!r} cannot be built from its options: {_shown(error)}. An option is a "
            f"keyword-only parameter of __init__."
        ) from error


@contextmanager
def blamed(name: str, method: Method, where: str) -> Iterator[None]:
    """Name what a method raises that is the user's own, and the line of its module.

    Args:
        name: What the recipe calls the method.
        method: The method that is at work.
        where: What it is doing.

    Raises:
        RecipeError: It raised something that is no error of ours.
    """
    try:
        yield
    except PpllError:
        raise
    except Exception as error:
        if not is_own_method(name):
            raise
        raise RecipeError(
            f"method.name = {name!r} fails {where}: {_shown(error)}{_place(method, error)}. Mend "
            f"the class."
        ) from error


def _place(method: Method, error: Exception) -> str:
    """Where in the method's module it happened, as far as that is known."""
    file = getattr(sys.modules.get(type(method).__module__), "__file__", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return f" ({file}, line {frames[-1].lineno})" if frames else ""


def _imported_class(name: str) -> type[Method]:
    module_name, _, class_name = name.partition(_SEPARATOR)
    is_file = module_name.endswith(".py")
    if is_file or not all(p.isidentifier() for p in [*module_name.split("."), class_name]):
        nearest = ":".join(name.rsplit(".", 1)) if _SEPARATOR not in name else ""
        if is_file:
            nearest = f"{Path(module_name).stem}:{class_name}"
        example = nearest or "my_package.my_module:MyMethod"
        raise RecipeError(
            f"method.name = {name!r} is neither a method of the shelf nor a class of a module: "
            f'write "module:Class", such as "{example}".'
        )
    module = _imported(name, module_name)
    found = getattr(module, class_name, None)
    if not inspect.isclass(found) or not issubclass(found, Method) or inspect.isabstract(found):
        raise RecipeError(_no_method(module, module_name, class_name))
    return found


def _imported(name: str, module_name: str) -> object:
    if module_name == "__main__":
        raise RecipeError(
            f"method.name = {name!r}: another process has another __main__. Put the class into a "
            f"module of its own and name that."
        )
    try:
        return import_module(module_name)
    except (Exception, SystemExit) as error:
        raise RecipeError(
            f"cannot import {module_name!r} for method.name = {name!r}: {_shown(error)}. "
            f"{_how_to_import(module_name, error)}"
        ) from error


def _how_to_import(module_name: str, error: BaseException) -> str:
    """What to do about a module that cannot be imported."""
    what = f"python -c 'import {module_name}' must work."
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if not missing or not f"{module_name}.".startswith(f"{missing}."):
        return f"Mend that: {what}"
    if module_name in {entry.name for entry in methods}:
        return (
            f"{module_name} is a method of the shelf: its options are method.KEY=VALUE, in a study "
            f"{module_name}:KEY=VALUE."
        )
    if Path(f"{missing}.py").is_file() or Path(missing).is_dir():
        return (
            f"It lies in this folder, where Python does not look: put PYTHONPATH=. before the "
            f"command; {what}"
        )
    parent, _, last = missing.rpartition(".")
    where = getattr(sys.modules[parent], "__path__", []) if parent else None
    found = pkgutil.iter_modules(where)
    near = difflib.get_close_matches(last, {module.name for module in found}, n=1)
    hint = f"Did you mean {'.'.join([*filter(None, [parent]), near[0]])!r}? " if near else ""
    return f"{hint}Install its package or put its folder on PYTHONPATH; {what}"


def _no_method(module: object, module_name: str, class_name: str) -> str:
    """Why what was found is no class to build a method from, and which ones the module has."""
    classes = inspect.getmembers(module, inspect.isclass)
    found = [n for n, cls in classes if issubclass(cls, Method) and cls is not Method]
    if class_name not in vars(module):
        return unknown_name(f"class of module {module_name!r}", class_name, found or ["(none)"])
    abstract = sorted(getattr(getattr(module, class_name), "__abstractmethods__", ()))
    lacks = f" with {', '.join(abstract)}()" if class_name in found else ""
    return (
        f"{module_name}:{class_name} is no method of local learning: it must be a subclass of "
        f"ppll.methods.Method{lacks}."
    )


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
