"""Made-up samples of any shape and number, for benchmarks and tests."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from ppll.data.dataset import Dataset
from ppll.errors import DataError
from ppll.randomness import fold

__all__ = ["synthetic"]

_WIDEST: Final = 3.0
"""In units of the noise, where the tokens of a sample's numbers end."""

Floats = npt.NDArray[np.float32]


def synthetic(
    *,
    shape: tuple[int, ...] = (3, 32, 32),
    num_classes: int = 10,
    num_train: int = 1024,
    num_test: int = 256,
    separation: float = 0.2,
    num_tokens: int = 0,
) -> Dataset:
    """Every class is a random point, every sample its class's point with noise around it.

    The same samples come out every time; more of them begin with the same ones. A shape of three
    numbers gives uint8 images, any other float32, or rows of tokens.

    Args:
        shape: One sample's shape.
        num_classes: Classes to tell apart, in turn 0, 1, 2, ...
        num_train: Training samples.
        num_test: Test samples.
        separation: Spread of the classes' points in units of the noise; at 0 there is nothing to
            learn.
        num_tokens: Different tokens: with 1 or more a sample is a row of them, and its shape one
            number. Each stands for an equal part of the range of numbers.

    Raises:
        DataError: A size is below 1 or too large, ``separation`` or ``num_tokens`` below 0, or
            there are tokens of another shape than (T).
    """
    _check_sizes(
        shape=min(shape, default=0),
        num_classes=num_classes,
        num_train=num_train,
        num_test=num_test,
    )
    if not 0 <= separation < float("inf"):
        raise DataError(f"data.separation must be 0 or more, found {separation}.")
    if num_tokens < 0 or (num_tokens and len(shape) != 1):
        raise DataError(
            f"data.num_tokens must be 0, or 1 or more with data.shape = [T], found {num_tokens} "
            f"with {list(shape)}."
        )
    try:
        points = separation * _noise("points", num_classes, shape)
        train = _samples(points, "train", num_train, num_tokens)
        test = _samples(points, "test", num_test, num_tokens)
    except (MemoryError, ValueError):  # numpy counts no more bytes than 63 bits hold
        raise DataError(
            f"{num_train} and {num_test} samples of the shape {shape} do not fit into memory: "
            f"lower data.num_train, data.num_test, data.num_classes or data.shape."
        ) from None
    return Dataset.from_arrays(
        train=train, test=test, num_classes=num_classes, num_tokens=num_tokens or None
    )


def _samples(
    points: Floats, part: str, number: int, num_tokens: int
) -> tuple[npt.NDArray[np.uint8 | np.int64] | Floats, npt.NDArray[np.int64]]:
    labels = np.arange(number) % len(points)
    samples = points[labels] + _noise(part, number, points.shape[1:])
    if num_tokens:
        tokens = ((samples / (2 * _WIDEST) + 0.5) * num_tokens).clip(0, num_tokens - 1)
        return tokens.astype(np.int64), labels
    if samples.ndim != 4:
        return samples, labels
    # Grey with a contrast that leaves nearly all of the noise between 0 and 255.
    return (128 + 32 * samples).round().clip(0, 255).astype(np.uint8), labels


def _noise(name: str, number: int, shape: tuple[int, ...]) -> Floats:
    generator = np.random.Generator(np.random.Philox(fold("synthetic", name)))
    return generator.standard_normal((number, *shape), dtype=np.float32)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise DataError(f"data.{name} must be 1 or more, found {size}.")
