"""Greedy supervised learning: every block under a pooled linear classifier."""

from __future__ import annotations

from ppll.methods.base import Paper
from ppll.methods.heads import HeadMethod

__all__ = ["Greedy"]


class Greedy(HeadMethod):
    """Cross-entropy of a linear classifier on pooled features, block by block.

    This is the "greedy SL" row of the literature: the simplest local method, and the weakest.
    """

    paper = Paper("Greedy Layerwise Learning Can Scale to ImageNet", 2019, "arXiv 1812.11446")
    default_auxiliary = "linear"
