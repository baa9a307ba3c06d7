"""Whether labels are of the classes that there are, and tokens of the vocabulary."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from ppll.errors import DataError

__all__ = ["check_count", "check_labels", "check_vocabulary", "counted_from"]


def counted_from(given: int | None, values: Sequence[Tensor]) -> int:
    """A number that was given, otherwise one more than the largest value."""
    if given is None:
        return 1 + max(int(tensor.max()) for tensor in values)
    with suppress(TypeError):  # What numpy and torch count is no int.
        return operator.index(given)
    return given


def check_count(name: str, what: str, number: object) -> int:
    """Let a number of classes or tokens pass.

    Raises:
        DataError: It is none.
    """
    if not isinstance(number, int) or not 1 <= number < 2**31:
        raise DataError(f"{name} must be a number of {what}, found {number!r}.")
    return number


def check_labels(part: str, targets: Tensor, num_classes: int) -> None:
    """Let targets pass: class indices of any shape, or values (N, D) where ``num_classes`` is D.

    Raises:
        DataError: A label is not a class, or a sample has another number of values.
    """
    if targets.is_floating_point():
        if targets.shape[1] != num_classes:
            raise DataError(
                f"{part} samples have {targets.shape[1]} value(s) each to predict, not "
                f"{num_classes} as those of train or num_classes: give all the same number, and "
                f"leave num_classes out."
            )
    elif (found := _first_outside(targets, num_classes)) is not None:
        value, index = found
        raise DataError(
            f"label {value} of {part} sample {index} is not a class: {num_classes} classes have "
            f"the labels 0 to {num_classes - 1}. Number them so, or give values to predict in "
            f"floating point."
        )


def check_vocabulary(part: str, tokens: Tensor, num_tokens: int) -> None:
    """Let tokens pass that are from 0 to below ``num_tokens``.

    Raises:
        DataError: One is not.
    """
    if (found := _first_outside(tokens, num_tokens)) is not None:
        value, index = found
        raise DataError(
            f"token {value} of {part} sample {index} is not in the vocabulary: num_tokens = "
            f"{num_tokens}, which are 0 to {num_tokens - 1}."
        )


def _first_outside(values: Tensor, number: int) -> tuple[int, int] | None:
    """The first value that is not from 0 to below the number, and its sample."""
    if int(values.min()) >= 0 and int(values.max()) < number:
        return None
    wide = values.long()  # a byte cannot be compared with 256
    bad = torch.nonzero((wide < 0) | (wide >= number))[0]
    return int(values[tuple(bad)]), int(bad[0])
