"""Shelf of auxiliary networks, which turn a block's features into a local prediction.

A builder takes the site of the cut, and its options by keyword. No auxiliary network changes its
input in place: the next block reads the same tensor.
"""

from __future__ import annotations

from torch import nn

from ppll.auxiliary.conv_2fc import conv_2fc
from ppll.auxiliary.later_layers import later_layers
from ppll.auxiliary.linear import linear
from ppll.auxiliary.mlp_sr import mlp_sr
from ppll.auxiliary.pooled_linear import pooled_linear
from ppll.auxiliary.projector import projector
from ppll.auxiliary.readout import frozen_readout
from ppll.auxiliary.sedona import sedona
from ppll.auxiliary.strided_separable import strided_separable
from ppll.registry import Registry

__all__ = ["auxiliaries"]

auxiliaries: Registry[nn.Module] = Registry("auxiliary network", "method.auxiliary_options")

_add = auxiliaries.register
_add("auglocal", "layers like later ones (Ma et al. 2024)")(later_layers)
_add("conv-2fc", "a convolution and two dense layers (Wang et al. 2021)")(conv_2fc)
_add("frozen-readout", "the network's last layer, as it is at the start")(frozen_readout)
_add("linear", "pooled linear head")(linear)
_add("mlp-sr", "MLP behind spatial reduction (Belilovsky et al. 2020)")(mlp_sr)
_add("pooled-linear", "pooled linear head, zero at first (Nøkland and Eidnes 2019)")(pooled_linear)
_add("projector", "flattened maps and an MLP (SCPL 2026)")(projector)
_add("sedona", "light convolutions, depth 1 to 4 (Pyeon et al. 2021)")(sedona)
_add("strided-separable", "separable convolutions down to a small map, then residual ones")(
    strided_separable
)
