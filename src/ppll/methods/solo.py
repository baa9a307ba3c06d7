"""SOLO (2026): every block reads its features through the network's own last layer."""

from __future__ import annotations

from torch import Tensor, nn

from ppll.auxiliary.readout import SharedReadout, shared_readout
from ppll.errors import RecipeError
from ppll.methods.base import Method, Paper
from ppll.site import BlockSite

__all__ = ["SOLO"]


class SOLO(Method):
    """Cross-entropy of an adapter, a learned temperature, and a read-only copy of the last layer.

    The last layer's parameters come over the side channel to all blocks, ``lag`` training messages
    late.

    Args:
        depth: Layers of the adapter, 0 or more.
        lag: Training messages by which the last layer's parameters are behind, 1 to 63.
    """

    paper = Paper("SOLO", 2026, "arXiv 2609.35440")
    slow_from = "last"

    def __init__(self, *, depth: int = 1, lag: int = 8) -> None:
        if lag < 1:
            raise RecipeError(f"method.lag must be at least 1, found {lag}.")
        if depth < 0:
            raise RecipeError(f"method.depth must be at least 0, found {depth}.")
        self.depth = depth
        self.lag = lag

    def build_auxiliary(self, site: BlockSite) -> nn.Module:
        """The adapter and the copy."""
        return shared_readout(site, depth=self.depth)

    def take_slow(self, auxiliary: nn.Module, parameters: Tensor) -> None:
        """Let the copy follow."""
        assert isinstance(auxiliary, SharedReadout)
        auxiliary.follow(parameters)
