"""Checks of what a recipe, or a network and its data, ask of a method."""

from __future__ import annotations

import math

from ppll.errors import ModelError, RecipeError
from ppll.site import BlockSite

__all__ = ["check_not_negative", "check_positive", "refuse_targets_of_tokens"]


def check_positive(**options: float) -> None:
    """Let options of a method pass that are above 0 and finite.

    Raises:
        RecipeError: One is not.
    """
    for name, value in options.items():
        if not 0 < value < math.inf:
            raise RecipeError(f"method.{name} must be above 0 and finite, found {value:g}.")


def check_not_negative(**options: float) -> None:
    """Let options of a method pass that are 0 or more, and finite.

    Raises:
        RecipeError: One is not.
    """
    for name, value in options.items():
        if not 0 <= value < math.inf:
            raise RecipeError(f"method.{name} must be at least 0 and finite, found {value:g}.")


def refuse_targets_of_tokens(what: str, site: BlockSite) -> None:
    """Refuse a language model, for what compares whole samples by their classes.

    Args:
        what: That compares.
        site: The cut.

    Raises:
        ModelError: Every token has a target.
    """
    if site.predicts_tokens:
        raise ModelError(
            f"{what} compares samples by their classes, but every token has a target of its own "
            f"here: choose another method.name."
        )
