"""Features in fewer bytes, as ``split.features_dtype`` asks for at every cut.

What a block receives is what would have come over a link, wherever its neighbour runs, so the
placement changes nothing. ``bf16`` rounds. ``int8`` has a scale for every channel of a map, every
token of a row and every vector: ``x ~ scale * q`` with ``scale = max |x| / 127``. So values depend
neither on what else is in the batch nor on later tokens, which a language model is to predict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from ppll.message import FEATURES
from ppll.methods.base import PREVIOUS

__all__ = ["FeaturesType", "as_received", "num_bytes", "opened", "packed", "renamed"]

FeaturesType: TypeAlias = Literal["bf16", "int8"]

_SCALE: Final = "_scale"
_LARGEST: Final = 127


def packed(features: Tensor, dtype: FeaturesType | None) -> dict[str, Tensor]:
    """The fields of a message that stand for features.

    Args:
        features: (N, C, H, W), (N, T, D) or (N, D), without gradient history.
        dtype: How they travel; as they are without.
    """
    if dtype is None:
        return {FEATURES: features}
    if dtype == "bf16":
        return {FEATURES: features.bfloat16()}
    values = features.float()
    scale = values.abs().amax(_shared(values), keepdim=True) / _LARGEST
    # What is not finite makes its scale so, and comes out as what is not a number.
    steps = values / scale.masked_fill(scale == 0, 1)
    whole = steps.round_().nan_to_num_().clamp_(-_LARGEST, _LARGEST).to(torch.int8)
    return {FEATURES: whole, FEATURES + _SCALE: scale}


def _shared(features: Tensor) -> tuple[int, ...]:
    """The dimensions along which values have the same scale."""
    return tuple(range(min(2, features.dim() - 1), features.dim()))


def opened(tensors: Mapping[str, Tensor], dtype: FeaturesType | None) -> Mapping[str, Tensor]:
    """A message's fields with the features as floating point again."""
    if dtype is None:
        return tensors
    names = [name for name in (FEATURES, PREVIOUS) if name in tensors]
    return {**tensors, **{name: _open(tensors, name, dtype) for name in names}}


def _open(tensors: Mapping[str, Tensor], name: str, dtype: FeaturesType) -> Tensor:
    values, scale = tensors[name], tensors.get(name + _SCALE)
    if scale is not None:
        return values * scale
    is_rounded = dtype == "bf16" and values.dtype is torch.bfloat16
    return values.float() if is_rounded else values  # the network's own input comes as it is


def renamed(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The fields that stand for a message's features, under another name."""
    found = {name: tensors[FEATURES]}
    if FEATURES + _SCALE in tensors:
        found[name + _SCALE] = tensors[FEATURES + _SCALE]
    return found


def num_bytes(shape: Sequence[int], dtype: FeaturesType | None) -> dict[str, int]:
    """Size of each field that stands for features of a shape that are computed in float32."""
    fields = packed(torch.empty(tuple(shape), device="meta"), dtype)
    return {name: tensor.nbytes for name, tensor in fields.items()}


def as_received(features: Tensor, dtype: FeaturesType | None) -> Tensor:
    """What the next block gets of features (N, ...)."""
    return opened(packed(features, dtype), dtype)[FEATURES]
