"""SEDONA (Pyeon et al., ICLR 2021): light convolutional heads, their depth fixed by the recipe."""

from __future__ import annotations

from ppll.methods.base import Paper
from ppll.methods.heads import HeadMethod

__all__ = ["Sedona"]


class Sedona(HeadMethod):
    """Cross-entropy of the paper's auxiliary networks.

    The paper searches for boundaries and depths; here the recipe names both: ``split`` and
    ``method.auxiliary_options.depth``.
    """

    paper = Paper(
        "SEDONA: Search for Decoupled Neural Networks toward Greedy Block-wise Learning",
        2021,
        "openreview XLfdzwNKzch",
    )
    default_auxiliary = "sedona"
