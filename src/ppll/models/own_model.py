"""A network of the user's own: what a recipe names by its module, ``"module:function"``.

The function, or class, makes the network from the recipe's options. It draws first values in one
go, from the run's seed and its name, as a library does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, get_args

from torch import nn

from ppll.errors import RecipeError
from ppll.models import models
from ppll.models.initialising import drawn_from
from ppll.models.network import Network
from ppll.own_class import OwnKind, blamed_on, declared_types

__all__ = ["build_own_model", "check_own_model"]


def _declares_network(function: Callable[..., Any]) -> bool:
    return _holds_modules(declared_types(function).get("return"))


def _holds_modules(hint: Any) -> bool:
    """Whether a type is a module, or one of several or a list of some."""
    if inspect.isclass(hint):
        return issubclass(hint, nn.Module | Network)
    return any(_holds_modules(part) for part in get_args(hint))


_KIND: Final = OwnKind(
    "model",
    nn.Module,
    "torch.nn.Module, or a function that declares that it returns one or several (-> nn.Module, "
    "-> list[nn.Module])",
    [entry.name for entry in models],
    "its options are model.KEY=VALUE",
    _declares_network,
)


def check_own_model(name: str, options: Mapping[str, Any]) -> None:
    """Let a model's name pass if what it names can be imported and takes the options.

    Raises:
        RecipeError: It cannot, or does not.
    """
    _KIND.converted(name, _KIND.imported(name), options)


def build_own_model(
    name: str, options: Mapping[str, Any], seed: int
) -> nn.Module | Sequence[nn.Module] | Network:
    """What the function or class makes that is called ``"module:function"``.

    Args:
        name: What the recipe calls it.
        options: Its keyword arguments.
        seed: Of the run.

    Raises:
        RecipeError: It cannot be imported, does not take the options, raises something, or returns
            no modules.
    """
    build = _KIND.imported(name)
    options = _KIND.converted(name, build, options)
    with blamed_on("model.name", name, build, "when it is built"), drawn_from(seed, name):
        made: Any = build(**options)
    if not (isinstance(made, nn.Module | Network) or _is_row(made)):
        raise RecipeError(
            f"model.name = {name!r} returned {made!r:.80}: it must return an nn.Module or a list "
            f"of modules, in forward order."
        )
    return made  # type: ignore[no-any-return]


def _is_row(made: object) -> bool:
    """Whether there are modules in it; what kind each is, the network says."""
    return isinstance(made, Sequence) and any(isinstance(part, nn.Module) for part in made)
