"""Checks of what a recipe asks of a model."""

from __future__ import annotations

from typing import Final

from ppll.errors import RecipeError

__all__ = ["check_counts", "image_shape"]

_MOST: Final = 1_000_000
_MOST_LAYERS: Final = 10_000


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
        RecipeError: One is below 1, or so large that nothing could be built.
    """
    for name, value in options.items():
        most = _MOST_LAYERS if name == "depth" else _MOST
        if value < 1:
            raise RecipeError(f"model.{name} must be at least 1, found {value}.")
        if value > most:
            raise RecipeError(f"model.{name} must be at most {most:,}, found {value}.")
