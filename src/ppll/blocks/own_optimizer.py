"""An optimizer of the user's own: a class that a recipe names by its module, ``"module:Class"``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from torch import optim

from ppll.errors import RecipeError
from ppll.own_class import OwnKind, blamed_on
from ppll.update_sections import SHELF_OPTIMIZERS, OptimizerConfig

__all__ = ["build_own_optimizer"]

_OF_RECIPE: Final = ("lr", "weight_decay")
"""What the recipe has keys of its own for."""
_KIND: Final = OwnKind(
    "optimizer",
    optim.Optimizer,
    "torch.optim.Optimizer",
    SHELF_OPTIMIZERS,
    "leave out what follows it",
)


def build_own_optimizer(
    config: OptimizerConfig, groups: Sequence[dict[str, Any]], lr: float
) -> optim.Optimizer:
    """Import the class that is called ``"module:Class"`` and build it over groups of parameters.

    Args:
        config: Its name and options.
        groups: Parameters, each with its weight decay.
        lr: Highest learning rate.

    Raises:
        RecipeError: It cannot be imported, is no optimizer, or does not take what it is given.
    """
    build = _KIND.imported(config.name)
    known = inspect.signature(build).parameters
    if "lr" not in known:
        raise RecipeError(
            f"optimizer.name = {config.name!r} takes no lr, which the schedule of a recipe sets: "
            f"give its __init__ a parameter lr."
        )
    _check_options(config, build)
    if "weight_decay" not in known:
        groups = _without_decay(config.name, groups)
    with blamed_on("optimizer.name", config.name, build, "when it is built"):
        made: optim.Optimizer = build(groups, lr=lr, **config.options)
        return made


def _check_options(config: OptimizerConfig, build: Callable[..., Any]) -> None:
    for key in set(config.options) & set(_OF_RECIPE):
        raise RecipeError(f"optimizer.options.{key} has a key of its own: write optimizer.{key}.")
    _KIND.check_options(config.name, build, config.options, *_OF_RECIPE)


def _without_decay(name: str, groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    if any(group["weight_decay"] for group in groups):
        raise RecipeError(
            f"optimizer.name = {name!r} takes no weight_decay: set optimizer.weight_decay = 0."
        )
    return [{"params": group["params"]} for group in groups]
