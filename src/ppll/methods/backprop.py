"""End-to-end backpropagation: the control that every local method is held against."""

from __future__ import annotations

from torch import nn

from ppll.methods.base import BlockSite, Method, Paper

__all__ = ["Backprop"]


class Backprop(Method):
    """The whole network as one block that learns from its own head.

    It needs no auxiliary network, and ``split`` does not matter to it.
    """

    paper = Paper("Learning representations by back-propagating errors", 1986, "Nature 323")
    end_to_end = True

    def build_auxiliary(self, site: BlockSite) -> nn.Module:
        """Never needed: the only block is the last."""
        raise AssertionError(f"backprop has one block, found {site.num_blocks}")
