"""Samples that are used together, and what is to be predicted of them, checked at birth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ppll.errors import DataError

__all__ = ["Split", "described"]

_TOKENS: Final = (torch.uint8, torch.int32, torch.int64)
_SHAPES: Final = (
    "uint8 images (N, C, H, W), rows of tokens (N, T) in uint8, int32 or int64, or float32 of any "
    "shape (N, ...)"
)
_ONE_CLASS: Final = (
    "give one class index a sample, as by targets[:, 0] of a column, targets.argmax(1) of one-hot "
    "rows or targets.long() of true and false; or values to predict (N, D), as by targets.float()."
)


@dataclass(frozen=True, eq=False)
class Split:
    """Samples that are used together, such as all that are trained on.

    Attributes:
        inputs: uint8 images (N, C, H, W), or float32 of any shape (N, ...); or rows of tokens
            (N, T) in uint8, int32 or int64; on the CPU.
        targets: Class indices (N), int64; or values (N, D), float32; or of tokens the one that
            follows each (N, T), in the type of the inputs.
        groups: Of every sample, a number (N), int64, that it shares with those that it may not be
            parted from, such as the windows of one file; none where every sample stands alone.

    Raises:
        DataError: The two do not belong together, are empty, or have other types.
    """

    inputs: Tensor
    targets: Tensor
    groups: Tensor | None = None

    def __repr__(self) -> str:
        return f"Split({described(self.inputs)}, targets {described(self.targets)})"

    def __post_init__(self) -> None:
        _check_tensors(self.inputs, self.targets)
        if self.groups is not None and self.groups.shape != self.inputs.shape[:1]:
            raise DataError(
                f"groups must be of shape ({len(self.inputs)},), found {described(self.groups)}: "
                "give one number a sample."
            )
        if self.predicts_tokens:
            _check_following(self.inputs, self.targets)
        else:
            _check_inputs(self.inputs)
            _check_targets(self.inputs, self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One sample's shape, without N."""
        return tuple(self.inputs.shape[1:])

    @property
    def holds_tokens(self) -> bool:
        """Whether a sample is a row of tokens (T)."""
        return self.inputs.dim() == 2 and self.inputs.dtype in _TOKENS

    @property
    def predicts_tokens(self) -> bool:
        """Whether each token of a sample has a target of its own, the token that follows it."""
        return self.holds_tokens and self.targets.dim() == 2 and not self.predicts_values

    @property
    def predicts_values(self) -> bool:
        """Whether a sample has values (D) to be predicted instead of a class."""
        return self.targets.is_floating_point()

    @property
    def holds_images(self) -> bool:
        """Whether a sample has channels, height and width."""
        return self.inputs.dim() == 4


def described(tensor: Tensor) -> str:
    """Type and shape, for messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _check_tensors(*given: object) -> None:
    for values in given:
        if not isinstance(values, Tensor):
            raise DataError(
                f"inputs and targets must be tensors of torch, found {type(values).__name__}: give "
                f"torch.as_tensor of them."
            )


def _check_following(tokens: Tensor, targets: Tensor) -> None:
    if tokens.dtype not in _TOKENS or tokens.shape != targets.shape or tokens.numel() == 0:
        raise DataError(
            f"rows of tokens must be (N, T) in uint8, int32 or int64, with one class a row or "
            f"targets of the same shape, found {described(tokens)} and targets "
            f"{described(targets)}: {_ONE_CLASS}"
        )
    if targets.dtype != tokens.dtype:
        raise DataError(f"targets must be {tokens.dtype} like the tokens, found {targets.dtype}.")


def _check_inputs(inputs: Tensor) -> None:
    dims, dtype = inputs.dim(), inputs.dtype
    is_known = dims >= 1 if dtype == torch.float32 else dims == 2 and dtype in _TOKENS
    if not is_known and not (dims == 4 and dtype == torch.uint8):
        raise DataError(
            f"inputs must be {_SHAPES}, found {described(inputs)}: turn them into one of these, "
            f"such as inputs[:, None] of grey images (N, H, W)."
        )
    if inputs.numel() == 0:
        raise DataError(f"inputs of shape {tuple(inputs.shape)} are empty: give samples.")
    _check_plain("inputs", inputs)


def _check_targets(inputs: Tensor, targets: Tensor) -> None:
    _check_plain("targets", targets)
    are_values = targets.dtype == torch.float32 and targets.dim() == 2 and targets.shape[1] > 0
    if not are_values and (targets.dtype != torch.int64 or targets.dim() != 1):
        raise DataError(
            f"targets must be int64 of shape (N,), found {described(targets)}: {_ONE_CLASS}"
        )
    if len(inputs) != len(targets):
        what = "row of values" if are_values else "class index"
        raise DataError(
            f"there are {len(inputs)} inputs but {len(targets)} targets: give one {what} a sample."
        )


def _check_plain(what: str, tensor: Tensor) -> None:
    if tensor.requires_grad:
        raise DataError(f"{what} require a gradient, but data is not learned: give plain values.")
