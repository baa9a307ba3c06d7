"""What a rank of a rival computes with: consecutive layers whose ends can be sent."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ppll.config import Recipe

__all__ = ["Chunk", "autocast"]


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[None]:
    """Where the recipe's precision holds on a device."""
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.train.precision == "bf16")


class Chunk(nn.Module):
    """Consecutive layers: one tensor (N, ...) to one that is dense and no view."""

    def __init__(self, layers: Iterable[nn.Module], recipe: Recipe, *, is_first: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self._recipe = recipe
        self._is_first = is_first

    def forward(self, features: Tensor) -> Tensor:
        """The features behind the last layer."""
        if not self._is_first:
            features = _DenseGradient.apply(features)  # type: ignore[no-untyped-call]
        with autocast(self._recipe, features.device):
            features = self.layers(features)
        # Gloo and NCCL send dense tensors only, and torch cuts outputs off their graph in place.
        return features.clone() if features._is_view() else features.contiguous()


class _DenseGradient(torch.autograd.Function):
    """The identity; its gradient is dense, so that it can be sent."""

    @staticmethod
    def forward(_ctx: Any, features: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    @once_differentiable
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()
