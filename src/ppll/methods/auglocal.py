"""Augmented auxiliary networks (Ma et al., ICLR 2024)."""

from __future__ import annotations

from ppll.methods.base import Paper
from ppll.methods.heads import HeadMethod

__all__ = ["AugLocal"]


class AugLocal(HeadMethod):
    """Cross-entropy of a network of layers like those behind the block, picked evenly.

    How many, is ``method.auxiliary_options.depth``.
    """

    paper = Paper(
        "Scaling Supervised Local Learning with Augmented Auxiliary Networks",
        2024,
        "arXiv 2402.17318",
    )
    default_auxiliary = "auglocal"
