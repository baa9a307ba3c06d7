"""MAN's auxiliary network: the next block's first layer twice, one learned, one that follows it.

Source: Su et al., "Momentum Auxiliary Network for Supervised Local Learning" (ECCV 2024), and
MAN++ (2025), whose two parts are weighted by a learned scale.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["MomentumLayer"]


class MomentumLayer(nn.Module):
    """Features (N, ...) to what the next block's first layer makes of them.

    ``s * learned(x) + (2 - s) * following(x)``; ``s`` is 1, or learned from 1 on.

    The following layer's parameters are an exponential moving average of the next block's, which
    ``follow`` takes in; nothing else trains them. Its norms work with the batch's own statistics in
    training and keep running ones of their own: only parameters are averaged.

    Args:
        layer: The next block's first layer; its structure is copied. What is frozen there is
            learned here, where it has first values.
        head: Reads what comes out.
        momentum: Of the moving average, 0 to below 1.
        scales: Whether ``s`` is learned.
    """

    def __init__(self, layer: nn.Module, head: nn.Module, momentum: float, scales: bool) -> None:
        super().__init__()
        self.learned = copy.deepcopy(layer)
        for parameter in self.learned.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        self.following = copy.deepcopy(layer).requires_grad_(False)
        self.head = head
        self.momentum = momentum
        self.scale = nn.Parameter(torch.empty(())) if scales else None
        self.register_buffer("num_followed", torch.empty((), dtype=torch.int64))
        self.num_followed: Tensor
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale to 1 and forget what was followed; the layers reset themselves."""
        if self.scale is not None:
            nn.init.ones_(self.scale)
        self.num_followed.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, classes) of the head."""
        learned, following = self.learned(features), self.following(features)
        if self.scale is not None:
            learned, following = self.scale * learned, (2 - self.scale) * following
        logits: Tensor = self.head(learned + following)
        return logits

    @torch.no_grad()
    def follow(self, parameters: Tensor) -> None:
        """Move the average towards the next block's first layer; take it over at first.

        Args:
            parameters: All parameters of that layer, one after the other: (P).
        """
        # Chosen on the device: to read the count would wait for all that is queued there.
        share = torch.where(self.num_followed == 0, 1.0, 1.0 - self.momentum)
        start = 0
        for parameter in self.following.parameters():
            values = parameters[start : start + parameter.numel()].view_as(parameter)
            parameter.lerp_(values, share.to(parameter.dtype))
            start += parameter.numel()
        self.num_followed += 1
