"""A data set of the user's own: what a recipe names by its module, ``"module:function"``.

The function makes it in every process that needs it, so it must make the same each time. That
it does is found out by a digest of all that it holds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final, get_args

from ppll.data.dataset import Dataset
from ppll.data.kept import digest_of
from ppll.data_facts import DataFacts
from ppll.errors import DataError, RecipeError
from ppll.own_class import OwnKind, blamed_on, declared_types
from ppll.sections import DataConfig

__all__ = ["build_own_dataset", "check_own_dataset", "check_same_contents"]

_KEYS: Final = DataConfig.model_fields.keys() - {"root"}
"""What a recipe says beside the options of a data set."""
_SEED: Final = (
    "it must make the same in every process, so seed what it draws, as by "
    "np.random.default_rng(0), and take files and sets in a fixed order."
)


def check_own_dataset(config: DataConfig, shelf: Collection[str]) -> None:
    """Let a data set's name pass if what it names can be imported and takes the options.

    Args:
        config: What the recipe says about its data.
        shelf: Names of data sets that need no module.

    Raises:
        RecipeError: It cannot, or does not.
    """
    kind = _kind(shelf)
    _arguments(config, kind, kind.imported(config.name))


def build_own_dataset(config: DataConfig, shelf: Collection[str]) -> Dataset:
    """What the function makes that is called ``"module:function"``.

    Args:
        config: What the recipe says about its data.
        shelf: Names of data sets that need no module.

    Raises:
        RecipeError: It cannot be imported, does not take the options, raises something, or
            returns no data set.
        DataError: What it makes a data set of is none.
    """
    kind = _kind(shelf)
    build = kind.imported(config.name)
    arguments = _arguments(config, kind, build)
    with blamed_on("data.name", config.name, build, "when it is called"):
        made: object = build(**arguments)
    if isinstance(made, Dataset):
        return made
    raise RecipeError(
        f"data.name = {config.name!r} returned a {type(made).__name__}: it must return a "
        f"ppll.Dataset, such as ppll.Dataset.from_arrays(train=(inputs, targets), "
        f"test=(inputs, targets))."
    )


def check_same_contents(name: str, data: Dataset, facts: DataFacts, remedy: str = _SEED) -> None:
    """Refuse another data set than that of the run.

    Args:
        name: What the recipe calls it.
        data: With as many test samples as are tested with.
        facts: What the run knows of its data.
        remedy: What to do about another one.

    Raises:
        DataError: It is another one.
    """
    if facts.digest is not None and (digest := digest_of(data)) != facts.digest:
        raise DataError(
            f"data.name = {name!r} makes other data now than the run has (SHA-256 was "
            f"{facts.digest}, is {digest}): {remedy}"
        )


def _kind(shelf: Collection[str]) -> OwnKind:
    return OwnKind(
        "data set",
        Dataset,
        "ppll.Dataset, or a function that declares that it returns one (-> ppll.Dataset)",
        shelf,
        "its options are data.KEY=VALUE",
        _declares_dataset,
        "data",
    )


def _declares_dataset(function: Callable[..., Any]) -> bool:
    hint = declared_types(function).get("return")
    return inspect.isclass(hint) and issubclass(hint, Dataset)


def _arguments(config: DataConfig, kind: OwnKind, build: Callable[..., Any]) -> dict[str, Any]:
    """The options, and ``data.root`` where it is given, as the function takes them."""
    parameters = inspect.signature(build).parameters
    if taken := [f"data.{key}" for key in parameters if key in _KEYS]:
        raise RecipeError(
            f"data.name = {config.name!r} has parameters of the names {', '.join(taken)}, which "
            f"are keys of every data set and are not handed to it: rename the parameters."
        )
    options = dict(config.options)
    if config.root is not None:
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if "root" not in parameters and not takes_any:
            raise RecipeError(
                f"data.root = {config.root}: {config.name!r} has no parameter root. Give it one "
                f"(root: Path), which is handed this folder, or leave data.root out."
            )
        hint = declared_types(build).get("root")
        types = {hint, *get_args(hint)}
        options["root"] = str(config.root) if str in types and Path not in types else config.root
    return kind.converted(config.name, build, options)
