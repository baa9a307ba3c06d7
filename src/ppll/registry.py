"""A shelf of interchangeable things, found by name and built from checked options."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, get_type_hints

import pydantic

from ppll.errors import RecipeError, unknown_name
from ppll.section import Checked
from ppll.sections import DataConfig, ModelConfig

__all__ = ["Entry", "Registry"]

T = TypeVar("T")

_KEYS_BESIDE: Final[Mapping[str, Collection[str]]] = {
    "data": DataConfig.model_fields,
    "model": ModelConfig.model_fields,
    "method": ("name",),  # The other keys there are options of some methods.
}
"""By section, keys beside the options that whatever it names may have."""


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One thing on a shelf.

    Attributes:
        name: What a recipe calls it.
        summary: One line for people who choose.
        build: Makes it; its keyword-only parameters are the options of a recipe.
    """

    name: str
    summary: str
    build: Callable[..., T]

    @property
    def options(self) -> dict[str, Any]:
        """Options by name with their default (``...`` where one must be given)."""
        return {
            p.name: ... if p.default is inspect.Parameter.empty else p.default
            for p in _option_parameters(self.build)
        }

    @property
    def meanings(self) -> dict[str, str]:
        """What each option is, as far as docstrings say so under ``Args:``."""
        found: dict[str, str] = {}
        for source in inspect.getmro(self.build) if inspect.isclass(self.build) else [self.build]:
            found = _arguments(inspect.cleandoc(source.__doc__ or "")) | found
        return found


def _arguments(docstring: str) -> dict[str, str]:
    listed = re.split(r"^\w+:$", docstring.partition("\nArgs:\n")[2], flags=re.MULTILINE)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", listed, flags=re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in entries}


def _option_parameters(build: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = inspect.signature(build).parameters.values()
    return [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


class Registry(Generic[T]):
    """Things of one kind by name.

    Args:
        kind: What they are, in words for messages, such as ``"model"``.
        section: Where a recipe names them, such as ``"model"`` for ``model.name``.
    """

    def __init__(self, kind: str, section: str) -> None:
        self.kind = kind
        self.section = section
        self._entries: dict[str, Entry[T]] = {}

    def register(self, name: str, summary: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Put the decorated function or class on the shelf.

        Raises:
            ValueError: The name is taken.
        """

        def add(build: Callable[..., T]) -> Callable[..., T]:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = Entry(name, summary, build)
            return build

        return add

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter(self._entries[name] for name in sorted(self._entries))

    def __getitem__(self, name: str) -> Entry[T]:
        try:
            return self._entries[name]
        except KeyError:
            raise RecipeError(unknown_name(self.kind, name, self._entries)) from None

    def build(self, name: str, options: Mapping[str, Any], *args: Any) -> T:
        """Build ``name`` from positional ``args`` and the ``options`` of a recipe.

        Raises:
            RecipeError: The name or an option is unknown, or a value has the wrong type.
        """
        entry = self[name]
        return entry.build(*args, **self.check(name, options))

    def check(
        self, name: str, options: Mapping[str, Any], section: str | None = None
    ) -> dict[str, Any]:
        """The options, converted to their declared types.

        Args:
            name: Of the thing.
            options: As a recipe gives them.
            section: Where it gives them, if not where it names the thing.

        Raises:
            RecipeError: The name or an option is unknown, or a value has the wrong type.
        """
        entry, section = self[name], section or self.section
        for key in options:
            if key not in entry.options:
                keys = [*entry.options, *_KEYS_BESIDE.get(section, ())]
                known = [f"{section}.{known}" for known in keys] or ["(none)"]
                what = f"option of {self.kind} {name!r}"
                raise RecipeError(unknown_name(what, f"{section}.{key}", known))
        return _converted(entry, options, section)


def _converted(entry: Entry[Any], options: Mapping[str, Any], section: str) -> dict[str, Any]:
    schema = _schema(entry)
    try:
        checked = schema(**options)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        # Behind an option pydantic names the alternative that did not fit; numbers are of items.
        key = ".".join(str(p) for i, p in enumerate(first["loc"]) if i == 0 or isinstance(p, int))
        if first["type"] == "missing":
            raise RecipeError(_must_be_given(entry, key, section)) from None
        found = "" if first["type"] == "value_error" else f" (found {first['input']!r})"
        message = first["msg"].removeprefix("Value error, ")
        raise RecipeError(f"{section}.{key}: {message}{found} for {entry.name!r}.") from None
    return {name: getattr(checked, name) for name in schema.model_fields}


@functools.cache
def _schema(entry: Entry[Any]) -> type[pydantic.BaseModel]:
    """What checks an entry's options; kept, as making it takes much longer than using it."""
    build = entry.build
    hints = get_type_hints(build.__init__ if inspect.isclass(build) else build)
    fields: dict[str, Any] = {
        p.name: (hints.get(p.name, Any), entry.options[p.name]) for p in _option_parameters(build)
    }
    return pydantic.create_model(f"{entry.name} options", __base__=Checked, **fields)


def _must_be_given(entry: Entry[Any], option: str, section: str) -> str:
    meaning = entry.meanings.get(option, "it has no default.")
    return f"{section}.{option} must be given for {entry.name!r}: {meaning}"
