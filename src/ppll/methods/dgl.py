"""Decoupled Greedy Learning (Belilovsky, Eickenberg and Oyallon, ICML 2020)."""

from __future__ import annotations

from ppll.methods.base import Paper
from ppll.methods.heads import HeadMethod

__all__ = ["DGL"]


class DGL(HeadMethod):
    """Cross-entropy of a small spatially pooled network, the paper's MLP-SR auxiliary network.

    The synchronous algorithm (Algorithm 1 of the paper): a block learns from every batch exactly
    once, in order.
    """

    paper = Paper("Decoupled Greedy Learning of CNNs", 2020, "arXiv 1901.08164")
    default_auxiliary = "mlp-sr"
