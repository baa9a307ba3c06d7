"""Checks of what a recipe asks of a model."""

from __future__ import annotations

from typing import Final

from ppll.errors import RecipeError

__all__ = [
    "check_counts",
    "check_dropout",
    "check_heads",
    "hidden_width",
    "image_shape",
    "token_shape",
]

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


def token_shape(model: str, input_shape: tuple[int, ...]) -> int:
    """Tokens of a language model's input.

    Raises:
        RecipeError: The samples are not rows of tokens.
    """
    if len(input_shape) != 1:
        raise RecipeError(
            f"model.name = {model!r} takes rows of tokens (T), but samples have the shape "
            f"{input_shape}: choose other data, such as data.name = 'stdlib-text', or another "
            f"model."
        )
    return input_shape[0]


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


def hidden_width(width: int, mlp_ratio: float) -> int:
    """Hidden units of a transformer layer's MLP.

    Raises:
        RecipeError: There is none.
    """
    if not width * mlp_ratio >= 1:
        raise RecipeError(
            f"model.mlp_ratio must leave the MLP a hidden unit (at least 1 / {width}), "
            f"found {mlp_ratio}."
        )
    return int(width * mlp_ratio)


def check_heads(width: int, heads: int) -> None:
    """Let heads pass that share the width evenly.

    Raises:
        RecipeError: They do not.
    """
    if width % heads:
        raise RecipeError(f"model.heads must divide model.width = {width}, found {heads}.")


def check_dropout(dropout: float) -> None:
    """Let a share of dropped units pass.

    Raises:
        RecipeError: It is not from 0 to below 1.
    """
    if not 0 <= dropout < 1:
        raise RecipeError(f"model.dropout must be at least 0 and below 1, found {dropout}.")
