"""Layers of the network that stand again in an auxiliary network: with its values, or like them."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ppll.models.names import qualified

__all__ = ["CopyOf", "LikeOf", "source_names"]


class CopyOf(nn.Module):
    """A layer again, read-only: it starts with that layer's values, and nothing here trains it.

    Norms with running statistics work with the batch's own in training and move theirs.

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

    def is_whole_in(self, values: Mapping[str, Tensor]) -> bool:
        """Whether all of the layer's values are among the network's."""
        own = _tensors(self.layer)
        return len(_found(own, self.source, values)) == len(own)

    def take(self, values: Mapping[str, Tensor]) -> None:
        """Take over those of the layer's values that are among the network's."""
        own = _tensors(self.layer)
        with torch.no_grad():
            for name, value in _found(own, self.source, values).items():
                own[name].copy_(value)


class LikeOf(nn.Module):
    """A layer of another one's structure, which learns values of its own.

    Modules in it that cannot reset themselves begin with the other one's values in another order.
    Where a library draws a parameter's elements alike and one by one, as with a normal or uniform
    distribution, that is another draw of the same; zeros stay zeros, and ones ones.

    Args:
        layer: The layer that learns, without values.
        source: What the other one's parameters' names begin with in the network.
    """

    def __init__(self, layer: nn.Module, source: str) -> None:
        super().__init__()
        self.layer = layer
        self.source = source

    def forward(self, features: Tensor) -> Tensor:
        """What the layer makes of features (N, ...)."""
        made: Tensor = self.layer(features)
        return made

    def draw(self, module: nn.Module, values: Mapping[str, Tensor]) -> bool:
        """Give a module the other one's parameters in an order of its own, and its buffers.

        Args:
            module: In ``layer``.
            values: The network's.

        Returns:
            Whether all that are needed are among them; otherwise nothing is done.
        """
        name = next(name for name, part in self.layer.named_modules() if part is module)
        own = _tensors(module, recurse=False)
        found = _found(own, qualified(self.source, name), values)
        if len(found) < len(own):
            return False
        with torch.no_grad():
            for key, value in found.items():
                drawn = isinstance(own[key], nn.Parameter)
                own[key].copy_(_shuffled(value) if drawn else value)
        return True


def source_names(prefix: str, module: nn.Module) -> dict[str, str]:
    """Names of the tensors of all copies in a module, and those of the tensors they begin from.

    Args:
        prefix: Of the module's own names.
        module: An auxiliary network, say.
    """
    return {
        f"{name}.layer.{key}": qualified(child.source, key)
        for name, child in module.named_modules(prefix=prefix)
        if isinstance(child, CopyOf | LikeOf)
        for key in _tensors(child.layer)
    }


def _tensors(module: nn.Module, *, recurse: bool = True) -> dict[str, Tensor]:
    parameters = module.named_parameters(recurse=recurse)
    return {**dict(parameters), **dict(module.named_buffers(recurse=recurse))}


def _found(
    own: Mapping[str, Tensor], source: str, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The values that stand for one's own tensors; none if one of them is of another shape."""
    found = {n: values[qualified(source, n)] for n in own if qualified(source, n) in values}
    return found if all(v.shape == own[n].shape for n, v in found.items()) else {}


def _shuffled(values: Tensor) -> Tensor:
    """By torch's default generator."""
    return values.flatten()[torch.randperm(values.numel())].view(values.shape)
