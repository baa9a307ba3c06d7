"""A layer of the network that stands again in an auxiliary network, with the same values."""

from __future__ import annotations

import copy

from torch import Tensor, nn

__all__ = ["CopyOf", "source_names"]


class CopyOf(nn.Module):
    """A layer again, read-only: it starts with that layer's values, and nothing here trains it.

    Args:
        layer: What is copied; only its structure is looked at.
        source: What its parameters' names begin with in the network; empty for no prefix.
    """

    def __init__(self, layer: nn.Module, source: str) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer).requires_grad_(False)
        self.source = source

    def forward(self, features: Tensor) -> Tensor:
        """What the layer makes of features (N, ...)."""
        made: Tensor = self.layer(features)
        return made


def source_names(prefix: str, module: nn.Module) -> dict[str, str]:
    """Names of the tensors of all copies in a module, and those of the tensors that they copy.

    Args:
        prefix: Of the module's own names.
        module: An auxiliary network, say.
    """
    return {
        f"{name}.layer.{key}": f"{child.source}.{key}" if child.source else key
        for name, child in module.named_modules(prefix=prefix)
        if isinstance(child, CopyOf)
        for key in child.layer.state_dict()
    }
