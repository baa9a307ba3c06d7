"""Heads that read through a copy of the network's own last layer.

Sources: SOLO (arXiv 2609.35440) reads ``z = tau * sg(W) * phi(h)``: phi are layers like those of
the network with an RMS norm, tau is a learned temperature, and W the final readout, which nothing
here trains. ZeroLock (arXiv 2608.07974) reads through the frozen final norm and head of the model
that is fine-tuned, behind an adapter that begins as the identity.

What follows the network's last layer here is that whole layer, its norm included.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ppll.auxiliary.features import is_channels_last
from ppll.auxiliary.later_layers import hidden_layers
from ppll.errors import ModelError, RecipeError
from ppll.models.copies import CopyOf
from ppll.models.network import Network
from ppll.models.trial import feature_shapes
from ppll.site import BlockSite

__all__ = ["SharedReadout", "frozen_readout", "shared_readout"]


class SharedReadout(nn.Module):
    """Features (N, ...) to logits through an adapter, a norm, and the network's last layer.

    Args:
        adapter: Layers of its own, and a norm.
        readout: The last layer, whose values ``follow`` takes in.
    """

    def __init__(self, adapter: nn.Module, readout: CopyOf) -> None:
        super().__init__()
        self.adapter = adapter
        self.readout = readout
        self.temperature = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the temperature to 1; the other parts reset themselves."""
        nn.init.ones_(self.temperature)

    def forward(self, features: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.temperature * self.readout(self.adapter(features))
        return logits

    @torch.no_grad()
    def follow(self, parameters: Tensor) -> None:
        """Take over the last layer's parameters, one after the other: (P)."""
        start = 0
        for parameter in self.readout.parameters():
            parameter.copy_(parameters[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()


class NearIdentity(nn.Module):
    """Features and what a narrow MLP adds to them: nothing at first.

    Args:
        width: Length D of a token or vector, or channels C of a map.
        hidden: Hidden units.
        dim: Which dimension of a batch is so long: -1, or 1 of maps (N, C, H, W).
    """

    def __init__(self, width: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.down = nn.Linear(width, hidden)
        self.up = nn.Parameter(torch.empty(width, hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Clear what leads back to the width."""
        nn.init.zeros_(self.up)

    def forward(self, features: Tensor) -> Tensor:
        """The features with the addition."""
        hidden = nn.functional.gelu(self.down(features.movedim(self.dim, -1)))
        return features + nn.functional.linear(hidden, self.up).movedim(-1, self.dim)


def shared_readout(site: BlockSite, *, depth: int = 1) -> SharedReadout:
    """Layers like later ones of the network, an RMS norm, and the network's last layer.

    Args:
        site: The cut; its ``layers_behind`` are looked at.
        depth: Layers of the adapter, 0 or more.

    Raises:
        ModelError: The layers do not fit onto each other, or the last one cannot read what they
            make or has no parameters.
    """
    layers, shape = hidden_layers(site, depth, "method 'solo'", "method.name")
    norm = nn.RMSNorm(shape[-1]) if len(shape) == 2 else nn.Identity()
    readout = _last_layer(site, "method 'solo'", "method.name")
    _check_read(site, len(layers), shape)
    return SharedReadout(nn.Sequential(OrderedDict(layers=layers, norm=norm)), readout)


def _check_read(site: BlockSite, depth: int, shape: tuple[int, ...]) -> None:
    """Refuse an adapter whose output the last layer cannot read.

    It is not run on what it reads in the network: with a large vocabulary that takes seconds and
    hundreds of megabytes for every block.
    """
    if site.layers_behind[-1].reads is None and shape == _read_by_last(site):
        return
    try:
        with torch.device("cpu"):
            feature_shapes(Network(site.layers_behind[-1:]), shape)
    except ModelError as error:
        raise ModelError(
            f"method 'solo' reads features by the network's last layer, behind an adapter of "
            f"{depth} layer(s) here, but they do not fit onto each other ({error}). Raise "
            f"method.depth, cut elsewhere (split.cuts), or choose another method.name."
        ) from error


def frozen_readout(site: BlockSite, *, adapter: int = 0) -> nn.Module:
    """The network's last layer as it was at the start, whose parameters stay as they are.

    Args:
        site: The cut; features are like what the last layer reads.
        adapter: Hidden units of an adapter before it, which mixes the channels of each pixel of
            maps; 0 for none.

    Raises:
        RecipeError: ``adapter`` is negative.
        ModelError: Features are of another shape than the last layer reads, or come behind it.
    """
    if adapter < 0:
        raise RecipeError(f"frozen-readout: adapter must be at least 0, found {adapter}.")
    if not site.layers_behind:  # As for MAN before the last layer, which it reads through already.
        raise ModelError(
            "'frozen-readout' reads features by the network's last layer, but no layer follows "
            "what it reads: cut earlier (split.cuts) or choose another method.auxiliary."
        )
    read = _read_by_last(site)
    if read != site.feature_shape:
        raise ModelError(
            f"'frozen-readout' reads features by the network's last layer, which reads {read} a "
            f"sample, found {site.feature_shape} at a cut: cut elsewhere (split.cuts) or choose "
            f"another method.auxiliary."
        )
    readout = _last_layer(site, "'frozen-readout'", "method.auxiliary")
    if adapter == 0:
        return readout
    if len(read) == 3 and not is_channels_last(site):
        # Under a name of its own: of these maps, "adapter" mixed columns before.
        channels = NearIdentity(read[0], adapter, 1)
        return nn.Sequential(OrderedDict(channel_adapter=channels, readout=readout))
    adapted = NearIdentity(read[-1], adapter, -1)
    return nn.Sequential(OrderedDict(adapter=adapted, readout=readout))


def _read_by_last(site: BlockSite) -> tuple[int, ...]:
    """One sample's shape at the input of the network's last layer."""
    return site.shapes_behind[-2] if len(site.shapes_behind) > 1 else site.feature_shape


def _last_layer(site: BlockSite, asker: str, chosen_by: str) -> CopyOf:
    last = site.layers_behind[-1]
    last.check_copied(chosen_by)
    if not [*last.module.parameters()]:
        raise ModelError(
            f"{asker} reads through the network's last layer, but {last} has no parameters: "
            f"choose another {chosen_by}."
        )
    return CopyOf(last.module, last.path)
