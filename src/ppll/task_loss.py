"""The recipe's loss on a prediction: cross-entropy, or a class of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, get_args

import torch
from torch import Tensor, nn

from ppll.config import Recipe
from ppll.errors import RecipeError
from ppll.losses.classification import cross_entropy
from ppll.methods.base import Method, TaskLoss
from ppll.models.initialising import drawn_from
from ppll.own_class import OwnKind, blamed_on, declared_types
from ppll.sections import SHELF_LOSSES

__all__ = ["build_own_loss", "build_task_loss", "refuse_classes"]

_KIND: Final = OwnKind(
    "loss", nn.Module, "torch.nn.Module", SHELF_LOSSES, "leave out what follows it"
)


def build_task_loss(recipe: Recipe, device: torch.device) -> TaskLoss:
    """What a recipe's predictions learn from.

    Args:
        recipe: Names it.
        device: Where predictions are.

    Raises:
        RecipeError: It is a class that cannot be imported or built.
    """
    if recipe.loss.is_own:
        return partial(_of_all_tokens, build_own_loss(recipe).to(device))
    return partial(cross_entropy, label_smoothing=recipe.train.label_smoothing)


def build_own_loss(recipe: Recipe) -> nn.Module:
    """Import the class that is called ``"module:Class"`` and build it from its options.

    A number or list of numbers becomes a float32 tensor where ``__init__`` declares a tensor, such
    as ``weight`` of ``torch.nn.CrossEntropyLoss``. What it draws is a function of ``train.seed``.

    Raises:
        RecipeError: It cannot be imported, is no module, does not take the options, or has
            parameters, which no block would train.
    """
    config = recipe.loss
    build = _KIND.imported(config.name)
    _KIND.check_options(config.name, build, config.options)
    with (
        drawn_from(recipe.train.seed, config.name),
        blamed_on(_KIND.key, config.name, build, "when it is built", "Mend it or its options."),
    ):
        loss: nn.Module = build(**_with_tensors(build, config.options))
    if names := [name for name, _ in loss.named_parameters()]:
        raise RecipeError(
            f"loss.name = {config.name!r} has parameters ({', '.join(names)}), which no block "
            f"trains or saves: put what is learned into the network, or an auxiliary network."
        )
    return loss


def _of_all_tokens(loss: nn.Module, logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of samples; of rows of tokens (N, T), where each has a target, of N T samples."""
    if logits.dim() > 2:
        logits, targets = logits.flatten(0, -2), targets.flatten()
    value: Tensor = loss(logits, targets)
    return value


def refuse_classes(recipe: Recipe, method: Method) -> None:
    """Refuse what reads targets as classes, where they are values.

    Raises:
        RecipeError: The loss or the method does.
    """
    if not recipe.loss.is_own:
        raise RecipeError(
            f"loss.name = {recipe.loss.name!r} is of classes, but the data has values to predict "
            f"(targets in floating point): name a loss of these, such as loss.name = "
            f"'torch.nn:MSELoss', or give class indices as whole numbers."
        )
    if method.needs_classes:
        raise RecipeError(
            f"method {recipe.method.name!r} reads targets or predictions as those of classes, but "
            f"the data has values to predict: choose another method."
        )


def _with_tensors(build: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    hints = declared_types(build.__init__)
    return {key: _as_declared(value, hints.get(key)) for key, value in options.items()}


def _as_declared(value: object, hint: Any) -> object:
    types = (hint, *get_args(hint))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_meant = (is_number and not {int, float} & set(types)) or isinstance(value, list | tuple)
    return torch.tensor(value, dtype=torch.float32) if is_meant and Tensor in types else value
