"""Several auxiliary networks of one block under names of their own."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["HeadAndMore"]


class HeadAndMore(nn.Module):
    """A head, and another network that only the loss asks for.

    Args:
        head: Features (N, ...) to logits or projections (N, D).
        other: Reads the same features.
    """

    def __init__(self, head: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.other = other

    def forward(self, features: Tensor) -> Tensor:
        """What the head says."""
        read: Tensor = self.head(features)
        return read
