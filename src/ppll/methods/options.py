"""Checks of what a recipe asks of a method."""

from __future__ import annotations

import math

from ppll.errors import RecipeError

__all__ = ["check_not_negative", "check_positive"]


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
