"""Shelf of auxiliary networks, which turn a block's features into a local prediction.

A builder takes the site of the cut, and its options by keyword. No auxiliary network changes its
input in place: the next block reads the same tensor.
"""

from __future__ import annotations

from torch import nn

from ppll.auxiliary import linear, mlp_sr
from ppll.registry import Registry

__all__ = ["auxiliaries"]

auxiliaries: Registry[nn.Module] = Registry("auxiliary network", "method")

_add = auxiliaries.register
_add("linear", "pooled linear head")(linear.linear)
_add("mlp-sr", "MLP behind spatial reduction (Belilovsky et al. 2020)")(mlp_sr.mlp_sr)
