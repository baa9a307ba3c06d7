"""A row of things dealt to places (no torch)."""

from __future__ import annotations

import itertools

__all__ = ["place"]


def place(num_items: int, num_places: int) -> tuple[range, ...]:
    """Deal a row into contiguous runs of nearly equal length, the later ones longer.

    Example:
        >>> [len(run) for run in place(15, 4)]
        [3, 4, 4, 4]
    """
    bounds = [num_items * i // num_places for i in range(num_places + 1)]
    return tuple(range(a, b) for a, b in itertools.pairwise(bounds))
