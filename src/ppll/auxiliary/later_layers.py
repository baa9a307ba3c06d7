"""AugLocal's auxiliary network: later layers of the network, picked evenly, with own values.

Source: Ma et al., "Scaling Supervised Local Learning with Augmented Auxiliary Networks" (ICLR
2024). Of the n hidden layers behind a block, those at ``round(n / d * i)``, i from 1 to d, are
built a second time, one behind the other, before a pooled linear classifier. A residual layer
halves a map that is larger than its own, as the authors' code does. Nothing is shared and no values
are copied; modules that cannot reset themselves draw from those of the layer that they are like
(``LikeOf``). The depth d falls from block to block (section "pyramidal depth").
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import torch
from torch import nn

from ppll.auxiliary.linear import linear
from ppll.errors import ModelError, RecipeError
from ppll.models.copies import LikeOf
from ppll.models.empty import emptied
from ppll.models.initialising import resets_itself
from ppll.models.network import Layer, Network
from ppll.models.resnet import ResidualLayer
from ppll.models.trial import feature_shapes
from ppll.site import BlockSite

__all__ = ["hidden_layers", "later_layers", "picked", "pyramidal_depth"]

_DECAY: Final = 0.5
"""Share of the depth beyond 1 that the last auxiliary network lacks (tau in the paper)."""


def later_layers(site: BlockSite, *, depth: int = 2) -> nn.Module:
    """Layers like those behind the block, and a pooled linear classifier.

    The network's last layer, which makes the logits, is not among them. A block with fewer layers
    behind it than the depth has a network of them all.

    Args:
        site: The cut; its ``layers_behind`` are looked at.
        depth: Layers in the first block's auxiliary network, at least 1.

    Raises:
        RecipeError: The depth is below 1.
        ModelError: The layers do not fit onto each other.
    """
    if depth < 1:
        raise RecipeError(f"auglocal: depth must be at least 1, found {depth}.")
    depth = pyramidal_depth(depth, site.block_index, site.num_blocks)
    layers, shape = hidden_layers(site, depth, "auxiliary network 'auglocal'", "method.auxiliary")
    head = linear(dataclasses.replace(site, feature_shape=shape))
    return nn.Sequential(OrderedDict(layers=layers, head=head))


def hidden_layers(
    site: BlockSite, depth: int, asker: str, chosen_by: str
) -> tuple[nn.Sequential, tuple[int, ...]]:
    """Layers like those behind the block, without the last, and one sample's shape behind them.

    Args:
        site: The cut.
        depth: How many, where there are as many.
        asker: Whose they are, for messages.
        chosen_by: The recipe's key that names the asker, for messages.

    Raises:
        ModelError: They do not fit onto each other.
    """
    hidden = [*zip(site.layers_behind, site.shapes_behind, strict=True)][:-1]
    chosen = [hidden[i] for i in picked(len(hidden), depth)]
    for layer, _ in chosen:
        layer.check_copied(chosen_by)
    try:
        return _fitted(chosen, site.feature_shape)
    except ModelError as error:
        raise ModelError(
            f"{asker} builds layers like later ones behind a block, but they do not fit onto each "
            f"other: {error} Residual and transformer layers of the shelf do: cut elsewhere "
            f"(split.cuts), or choose another depth or {chosen_by}."
        ) from error


def pyramidal_depth(depth: int, block_index: int, num_blocks: int) -> int:
    """Depth at a block: the first has the whole, the last but one half of what is beyond 1."""
    way = block_index / max(1, num_blocks - 2)
    return max(1, round(depth - _DECAY * way * (depth - 1)))


def picked(num_layers: int, depth: int) -> tuple[int, ...]:
    """Which of the layers behind are picked, the nearest first; the last one always is.

    Halves are rounded up.
    """
    depth = min(depth, num_layers)
    return tuple((2 * num_layers * i + depth) // (2 * depth) - 1 for i in range(1, depth + 1))


def _fitted(
    layers: Sequence[tuple[Layer, tuple[int, ...]]], shape: tuple[int, ...]
) -> tuple[nn.Sequential, tuple[int, ...]]:
    """Fresh layers like the given ones, for features of the shape, and the shape behind them.

    Args:
        layers: Each with one sample's shape at its output in the network.
        shape: One sample's features.

    Raises:
        ModelError: They do not fit onto each other.
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for layer, target in layers:
        module = _fresh(layer, shape, target)
        with torch.device("cpu"):
            shape = feature_shapes(Network((Layer(layer.name, module),)), shape)[0]
        modules[layer.name] = module
    return nn.Sequential(modules), shape


def _fresh(layer: Layer, shape: tuple[int, ...], target: tuple[int, ...]) -> nn.Module:
    """A layer of the same structure.

    A residual layer reads as many channels as there are, and halves a map that is larger than what
    it makes in the network.
    """
    module = layer.module
    if isinstance(module, ResidualLayer) and len(shape) == len(target) == 3:
        return ResidualLayer(shape[0], target[0], stride=2 if shape[1:] > target[1:] else 1)
    fresh = emptied(module)
    for parameter in fresh.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return fresh if all(map(resets_itself, fresh.modules())) else LikeOf(fresh, layer.path)
