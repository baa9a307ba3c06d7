"""Low-rank additions to linear layers, which alone are learned: LoRA (Hu et al., ICLR 2022).

A layer computes ``x W^T + b + (alpha / rank) (x A^T) B^T``. ``A`` starts as a linear layer does
and ``B`` at zero, so at first the network is what it was without. Weights of a network without
additions fit one with them: what is added has names of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppll.models.network import Network

__all__ = ["ADDED", "Linears", "LoRALinear", "frozen_but_lora"]

ADDED: frozenset[str] = frozenset({"lora_down", "lora_up"})
"""Last parts of the names of what is added."""


class Linear(nn.Linear):
    """A linear layer with Glorot's first values, scaled.

    Args:
        in_features: Length of an input.
        out_features: Length of an output.
        gain: What the first values are multiplied with.
    """

    gain = 1.0  # nn.Linear resets itself before there is another

    def __init__(self, in_features: int, out_features: int, gain: float) -> None:
        super().__init__(in_features, out_features)
        self.gain = gain

    def reset_parameters(self) -> None:
        """Draw the weight and clear the bias."""
        nn.init.xavier_uniform_(self.weight, gain=self.gain)
        nn.init.zeros_(self.bias)


class LoRALinear(Linear):
    """A linear layer (..., in) to (..., out) with a low-rank addition.

    Args:
        in_features: Length of an input.
        out_features: Length of an output.
        gain: What the first values are multiplied with.
        rank: Of the addition, at least 1.
        alpha: Its weight is ``alpha / rank``.
    """

    no_decay: ClassVar[frozenset[str]] = ADDED

    def __init__(
        self, in_features: int, out_features: int, gain: float, rank: int, alpha: float
    ) -> None:
        super().__init__(in_features, out_features, gain)
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


@dataclass(frozen=True)
class Linears:
    """Makes a network's linear layers, with additions where the rank is not 0.

    Attributes:
        rank: Of the additions.
        alpha: Their weight is ``alpha / rank``.
    """

    rank: int = 0
    alpha: float = 16.0

    def __call__(self, in_features: int, out_features: int, *, gain: float = 1.0) -> nn.Linear:
        """A layer (..., in) to (..., out); its first values are multiplied with the gain."""
        if self.rank:
            return LoRALinear(in_features, out_features, gain, self.rank, self.alpha)
        return Linear(in_features, out_features, gain)


def frozen_but_lora(network: Network) -> Network:
    """The network itself, in which only the additions are learned."""
    for name, parameter in network.as_module().named_parameters():
        parameter.requires_grad_(name.rpartition(".")[2] in ADDED)
    return network
