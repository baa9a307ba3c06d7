"""Checks of what a recipe asks of a model."""

from __future__ import annotations

from ppll.errors import RecipeError

__all__ = ["check_counts", "image_shape"]


def image_shape(model: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width of an image model's input.

    Raises:
        RecipeError: The samples are not images.
    """
    if len(input_shape) != 3:
        raise RecipeError(
            f"model.name = {model!r} takes images (channels, height, width), "
            f"but samples have the shape {input_shape}: choose other data or another model."
        )
    channels, height, width = input_shape
    return channels, height, width


def check_counts(**options: int) -> None:
    """Let options pass that count something.

    Raises:
        RecipeError: One is below 1.
    """
    for name, value in options.items():
        if value < 1:
            raise RecipeError(f"model.{name} must be at least 1, found {value}.")
