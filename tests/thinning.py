"""What a matrix of tests tries by default; `make test-slow` tries the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

KINDS_OF_METHODS = ("dgl", "contsup", "man", "sgr")
"""One method for each thing that may travel: features alone; a context; parameters of a later
block; gradients behind the features."""


def slow_but(tried: Iterable[Any], values: Iterable[Any]) -> list[Any]:
    """``values`` for ``pytest.mark.parametrize``, slow but for those that are tried by default.

    A value is one argument, or a tuple of several.
    """
    tried, values = list(tried), list(values)
    if unknown := [value for value in tried if value not in values]:
        raise ValueError(f"{unknown} are none of {values}")
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    return [
        pytest.param(*row, marks=[pytest.mark.slow] * (value not in tried))
        for row, value in zip(rows, values, strict=True)
    ]
