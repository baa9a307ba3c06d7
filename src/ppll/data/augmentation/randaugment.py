"""RandAugment (Cubuk et al., arXiv 1909.13719): a few operations of a row, drawn for every image.

The row and the ranges are the paper's: magnitude 10 is the strongest that AutoAugment knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppll.data.augmentation.colour import COLOUR_OPERATIONS
from ppll.data.augmentation.geometric import moved
from ppll.randomness import fold, uniform_integers
from ppll.uploads import upload

__all__ = ["OPERATIONS", "randaugment"]

_STRONGEST: Final = 10
_WIDEST_ANGLE: Final = np.pi / 6
_WIDEST_SHEAR: Final = 0.3
_LONGEST_SHIFT: Final = 150 / 331
"""As a share of the side; AutoAugment's images had 331 pixels."""

Numbers = npt.NDArray[np.float64]
_Move = Callable[[Numbers, int, int], tuple[Sequence[Numbers | float], Sequence[Numbers | float]]]
"""Strengths (n), height and width to the two rows of a matrix."""

_MOVES: Final[dict[str, _Move]] = {
    "rotate": lambda s, _h, _w: (
        (np.cos(s * _WIDEST_ANGLE), -np.sin(s * _WIDEST_ANGLE), 0),
        (np.sin(s * _WIDEST_ANGLE), np.cos(s * _WIDEST_ANGLE), 0),
    ),
    "shear-x": lambda s, _h, _w: ((1, s * _WIDEST_SHEAR, 0), (0, 1, 0)),
    "shear-y": lambda s, _h, _w: ((1, 0, 0), (s * _WIDEST_SHEAR, 1, 0)),
    "translate-x": lambda s, _h, width: ((1, 0, s * _LONGEST_SHIFT * width), (0, 1, 0)),
    "translate-y": lambda s, height, _w: ((1, 0, 0), (0, 1, s * _LONGEST_SHIFT * height)),
}

OPERATIONS: Final = ("identity", *COLOUR_OPERATIONS, *_MOVES)
"""The row, by name."""


def randaugment(
    images: Tensor,
    samples: npt.NDArray[np.int64],
    key: int,
    *,
    magnitude: float,
    num_operations: int,
    fill: Tensor | None = None,
) -> Tensor:
    """Change every image by operations of its own, one after the other.

    Args:
        images: uint8 (N, C, H, W).
        samples: Index of every image's sample (N).
        key: Hash that everything drawn is a function of, with the sample's index.
        magnitude: Strength of all operations, 0 to 10; the side to which they go is drawn.
        num_operations: How many an image goes through; one can be drawn twice.
        fill: Of every channel (C), uint8: what comes in from outside; 0 without.
    """
    for turn in range(num_operations):
        drawn = uniform_integers(fold(key, "operation", turn), samples, len(OPERATIONS))
        sides = uniform_integers(fold(key, "side", turn), samples, 2) * 2 - 1
        strengths = sides.astype(np.float64) * np.float64(magnitude / _STRONGEST)
        images = _one_each(images, drawn, strengths, fill)
    return images


def _one_each(
    images: Tensor, drawn: npt.NDArray[np.int64], strengths: Numbers, fill: Tensor | None
) -> Tensor:
    """Every image by the operation that was drawn for it."""
    order = np.argsort(drawn, kind="stable")
    counts = np.bincount(drawn, minlength=len(OPERATIONS))
    groups = _at(images, order).split_with_sizes(counts.tolist())
    group_strengths = np.split(strengths[order], np.cumsum(counts)[:-1])
    changed = [
        _apply(name, group, strength, fill) if len(group) else group
        for name, group, strength in zip(OPERATIONS, groups, group_strengths, strict=True)
    ]
    return _at(torch.cat(changed), np.argsort(order))


def _at(images: Tensor, rows: npt.NDArray[np.int64]) -> Tensor:
    return images.index_select(0, upload(torch.from_numpy(rows), images.device))


def _apply(name: str, images: Tensor, strengths: Numbers, fill: Tensor | None) -> Tensor:
    if name == "identity":
        return images
    if name in COLOUR_OPERATIONS:
        strength = upload(torch.from_numpy(strengths), images.device)
        return COLOUR_OPERATIONS[name](images, strength)
    rows = _MOVES[name](strengths, *images.shape[-2:])
    # Both rows of three numbers, each (n): (n, 2, 3).
    matrix = np.stack([np.stack(np.broadcast_arrays(*row, strengths)[:3], -1) for row in rows], 1)
    return moved(images, upload(torch.from_numpy(matrix), images.device), fill)
