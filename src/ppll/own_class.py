"""A class or function of the user's own, which a recipe names by its module: ``"module:Class"``.

The module is looked for where Python looks for others, and imported by every process that needs it:
to name it is to ask that it be run. Nothing is added to what Python searches.
"""

from __future__ import annotations

import difflib
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, get_type_hints

import pydantic

from ppll.errors import PpllError, RecipeError, unknown_name

__all__ = ["OwnKind", "blamed_on", "declared_types", "is_own_class", "shown_error"]

_SEPARATOR: Final = ":"


def is_own_class(name: str) -> bool:
    """Whether a name is that of a class in a module, not one of a shelf; those have no dot."""
    return _SEPARATOR in name or "." in name


def declared_types(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of parameters, and of what is returned, that can be made out, also where others are
    known to checkers only."""
    found: dict[str, Any] = {}
    for key, hint in getattr(function, "__annotations__", {}).items():
        alone: Any = SimpleNamespace(__annotations__={key: hint})
        with suppress(Exception):
            found |= get_type_hints(alone, getattr(function, "__globals__", {}))
    return found


@dataclass(frozen=True)
class OwnKind:
    """What a class or function of the user's own is to be.

    Attributes:
        what: Its kind in words.
        base: What a class must derive from.
        base_name: What it must be a subclass of, in words.
        shelf: Names of its kind that a recipe may give without a module.
        hint: What to say of one of these that somebody takes for a module.
        takes_function: Whether a function does as well; none where no function does. Recipes come
            from elsewhere, too, and most functions are not to be called by them.
        section: The section of a recipe that names it, where that is called otherwise than it.
    """

    what: str
    base: type
    base_name: str
    shelf: Collection[str]
    hint: str
    takes_function: Callable[[Any], bool] | None = None
    section: str | None = None

    @property
    def key(self) -> str:
        """The recipe's key."""
        return self.key_of("name")

    def key_of(self, option: str) -> str:
        """A key of its section."""
        return f"{self.section or self.what}.{option}"

    def imported(self, name: str) -> Any:
        """Import the class or function that is called ``"module:Class"``.

        Raises:
            RecipeError: It cannot be imported, or is not of this kind.
        """
        module_name, _, class_name = name.partition(_SEPARATOR)
        is_file = module_name.endswith(".py")
        if is_file or not all(p.isidentifier() for p in [*module_name.split("."), class_name]):
            nearest = ":".join(name.rsplit(".", 1)) if _SEPARATOR not in name else ""
            if is_file:
                nearest = f"{Path(module_name).stem}:{class_name}"
            own = f"My{self.what.title().replace(' ', '')}"
            example = nearest or f"my_package.my_module:{own}"
            raise RecipeError(
                f"{self.key} = {name!r} is neither {self._one} of the shelf nor a {self._sort} of "
                f'a module: write "{self._form}", such as "{example}".'
            )
        module = self._module(name, module_name)
        found = getattr(module, class_name, None)
        if not self._fits(found) or inspect.isabstract(found):
            raise RecipeError(self._not_of_kind(module, module_name, class_name))
        return found

    def check_options(
        self, name: str, build: Callable[..., Any], options: Collection[str], *others: str
    ) -> None:
        """Let options pass that a class takes, all but ``others``, which a recipe gives otherwise.

        Raises:
            RecipeError: One is not known.
        """
        parameters = inspect.signature(build).parameters.values()
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            return
        known = [p.name for p in parameters if p.name not in others]
        for key in options:
            if key not in known:
                what = f"option of {self.what} {name!r}"
                raise RecipeError(unknown_name(what, key, known or ["(none)"]))

    def converted(
        self, name: str, build: Callable[..., Any], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Keyword arguments, converted to their declared types as far as there are some.

        Raises:
            RecipeError: One is not known, is of another type, or is missing.
        """
        parameters = inspect.signature(build).parameters.values()
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        known = {p.name: p for p in parameters if p.kind in by_name}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        for key in options:
            if key not in known and not takes_any:
                listed = [self.key_of(option) for option in known] or ["(none)"]
                what = f"option of {self.what} {name!r}"
                raise RecipeError(unknown_name(what, self.key_of(key), listed))
        for key, parameter in known.items():
            if parameter.default is parameter.empty and key not in options:
                raise RecipeError(
                    f"{self.key_of(key)} must be given for {name!r}: it has no default."
                )
        hints = declared_types(build.__init__ if inspect.isclass(build) else build)
        return {
            key: self._converted(name, key, value, hints.get(key)) for key, value in options.items()
        }

    def _converted(self, name: str, key: str, value: object, hint: Any) -> Any:
        """A value as the type that is declared for it, where that is one that can be checked."""
        try:
            declared = pydantic.TypeAdapter(object if hint is None else hint)
        except pydantic.PydanticUserError:
            return value
        try:
            return declared.validate_python(value)
        except pydantic.ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise RecipeError(
                f"{self.key_of(key)}: {problem} (found {value!r}) for {name!r}."
            ) from None

    def _fits(self, found: object) -> bool:
        if inspect.isroutine(found):
            return self.takes_function is not None and self.takes_function(found)
        return inspect.isclass(found) and issubclass(found, self.base) and found is not self.base

    @property
    def _sort(self) -> str:
        return "class" if self.takes_function is None else "function or class"

    @property
    def _form(self) -> str:
        return "module:Class" if self.takes_function is None else "module:function"

    @property
    def _one(self) -> str:
        return f"{'an' if self.what[0] in 'aeiou' else 'a'} {self.what}"

    def _module(self, name: str, module_name: str) -> object:
        if module_name == "__main__":
            raise RecipeError(
                f"{self.key} = {name!r}: another process has another __main__. Put it into a "
                f"module of its own and name that."
            )
        try:
            return import_module(module_name)
        except (Exception, SystemExit) as error:
            raise RecipeError(
                f"cannot import {module_name!r} for {self.key} = {name!r}: {shown_error(error)}. "
                f"{self._how_to_import(module_name, error)}"
            ) from error

    def _how_to_import(self, module_name: str, error: BaseException) -> str:
        """What to do about a module that cannot be imported."""
        what = f"python -c 'import {module_name}' must work."
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if not missing or not f"{module_name}.".startswith(f"{missing}."):
            return f"Mend that: {what}"
        if module_name in self.shelf:
            return f"{module_name} is {self._one} of the shelf: {self.hint.format(module_name)}."
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

    def _not_of_kind(self, module: object, module_name: str, class_name: str) -> str:
        """Why what was found is nothing to build from, and what else the module has."""
        found = [name for name, _ in inspect.getmembers(module, self._fits)]
        if class_name not in vars(module):
            what = f"{self._sort} of module {module_name!r}"
            return unknown_name(what, class_name, found or ["(none)"])
        abstract = sorted(getattr(getattr(module, class_name), "__abstractmethods__", ()))
        lacks = f" with {', '.join(abstract)}()" if class_name in found and abstract else ""
        return (
            f"{module_name}:{class_name} is no {self.what}: it must be a subclass of "
            f"{self.base_name}{lacks}."
        )


@contextmanager
def blamed_on(
    key: str, name: str, blamed: object, where: str, remedy: str = "Mend it."
) -> Iterator[None]:
    """Name what a class or function raises that is the user's own, and the line of its module.

    Args:
        key: The recipe's key.
        name: What the recipe calls it.
        blamed: The class or function that is at work.
        where: What it is doing.
        remedy: What to do about it.

    Raises:
        RecipeError: It raised something that is no error of ours.
    """
    try:
        yield
    except PpllError:
        raise
    except Exception as error:
        if not is_own_class(name):
            raise
        raise RecipeError(
            f"{key} = {name!r} fails {where}: {shown_error(error)}{_place(blamed, error)}. {remedy}"
        ) from error


def _place(blamed: object, error: Exception) -> str:
    """Where in the module of what is blamed it happened, as far as that is known."""
    file = getattr(sys.modules.get(getattr(blamed, "__module__", "")), "__file__", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return f" ({file}, line {frames[-1].lineno})" if frames else ""


def shown_error(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}"
