"""Made-up samples of any shape and number, for benchmarks and tests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ppll.data.dataset import Dataset
from ppll.errors import DataError
from ppll.randomness import fold

__all__ = ["synthetic"]

Floats = npt.NDArray[np.float32]


def synthetic(
    *,
    shape: tuple[int, ...] = (3, 32, 32),
    num_classes: int = 10,
    num_train: int = 1024,
    num_test: int = 256,
    separation: float = 0.2,
) -> Dataset:
    """Every class is a random point, every sample its class's point with noise around it.

    The same samples come out every time; more of them begin with the same ones. A shape of three
    numbers gives uint8 images, any other float32.

    Args:
        shape: One sample's shape.
        num_classes: Classes to tell apart, in turn 0, 1, 2, ...
        num_train: Training samples.
        num_test: Test samples.
        separation: Spread of the classes' points in units of the noise; at 0 there is nothing to
            learn.

    Raises:
        DataError: A size is below 1 or too large, or ``separation`` below 0.
    """
    _check_sizes(
        shape=min(shape, default=0),
        num_classes=num_classes,
        num_train=num_train,
        num_test=num_test,
    )
    if not 0 <= separation < float("inf"):
        raise DataError(f"data.separation must be 0 or more, found {separation}.")
    try:
        points = separation * _noise("points", num_classes, shape)
        train, test = _samples(points, "train", num_train), _samples(points, "test", num_test)
    except (MemoryError, ValueError):  # numpy counts no more bytes than 63 bits hold
        raise DataError(
            f"{num_train} and {num_test} samples of the shape {shape} do not fit into memory: "
            f"lower data.num_train, data.num_test, data.num_classes or data.shape."
        ) from None
    return Dataset.from_arrays(train=train, test=test, num_classes=num_classes)


def _samples(
    points: Floats, part: str, number: int
) -> tuple[npt.NDArray[np.uint8] | Floats, npt.NDArray[np.int64]]:
    labels = np.arange(number) % len(points)
    samples = points[labels] + _noise(part, number, points.shape[1:])
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
