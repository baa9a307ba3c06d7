"""Low-rank additions to linear layers, which alone are learned: LoRA (Hu et al., ICLR 2022).

A layer computes ``x W^T + b + (alpha / rank) (x A^T) B^T``. ``A`` starts as a linear layer does
and ``B`` at zero, so at first the network is what it was without. Weights of a network without
additions fit one with them: what is added has names of its own.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppll.models.network import Network
from ppll.models.vit import Linear

__all__ = ["ADDED", "LoRALinear", "frozen_but_lora", "linear_layer"]

ADDED: frozenset[str] = frozenset({"lora_down", "lora_up"})
"""Last parts of the names of what is added."""


class LoRALinear(Linear):
    """A linear layer (..., in) to (..., out) with a low-rank addition.

    Args:
        in_features: Length of an input.
        out_features: Length of an output.
        rank: Of the addition, at least 1.
        alpha: Its weight is ``alpha / rank``.
    """

    no_decay: ClassVar[frozenset[str]] = ADDED

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float) -> None:
        super().__init__(in_features, out_features)
        self.lora_down = nn.Parameter(torch.empty(rank, in_features))
        self.lora_up = nn.Parameter(torch.empty(out_features, rank))
        self.scale = alpha / rank
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight and the first factor, clear the bias and the second."""
        super().reset_parameters()
        if hasattr(self, "lora_up"):  # nn.Linear resets itself before there is one
            nn.init.xavier_uniform_(self.lora_down)
            nn.init.zeros_(self.lora_up)

    def forward(self, inputs: Tensor) -> Tensor:
        """The layer's output and the addition."""
        added = F.linear(F.linear(inputs, self.lora_down), self.lora_up)
        return super().forward(inputs) + self.scale * added


def linear_layer(in_features: int, out_features: int, rank: int, alpha: float) -> nn.Linear:
    """A linear layer, with an addition where the rank is not 0."""
    if rank:
        return LoRALinear(in_features, out_features, rank, alpha)
    return Linear(in_features, out_features)


def frozen_but_lora(network: Network) -> Network:
    """The network itself, in which only the additions are learned."""
    for name, parameter in network.as_module().named_parameters():
        parameter.requires_grad_(name.rpartition(".")[2] in ADDED)
    return network
