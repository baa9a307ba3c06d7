"""A block's own loss scale: small gradients of float16 must not become zero.

The rule is that of Micikevicius et al. (ICLR 2018, section 3.2) with the numbers of PyTorch's
``GradScaler``: halve after an overflow, double after 2,000 updates without one. It is a function
of the updates so far and is saved with the optimizer, so a resumed run goes on with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor, nn

__all__ = ["LOSS_SCALE", "LossScale"]

LOSS_SCALE: Final = ".loss_scale"
"""Ending of its name in a checkpoint."""

_FIRST: Final = 2.0**16
_LOWEST: Final = 1.0
_LARGEST: Final = 2.0**24
_NUM_GOOD: Final = 2000


class LossScale:
    """What a loss is multiplied by before the backward pass, a power of two.

    Attributes:
        value: The scale, from 1 to 2^24.
        num_good: Updates since it last changed.
    """

    def __init__(self) -> None:
        self.value = _FIRST
        self.num_good = 0

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss (scalar) to start a backward pass from, in float32."""
        return loss.float() * self.value

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the gradients by the scale, which is exact."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1 / self.value)

    def shrink(self) -> bool:
        """Take note of an overflow; False where the scale is the lowest already."""
        was, self.value = self.value, max(_LOWEST, self.value / 2)
        self.num_good = 0
        return self.value < was

    def grow(self) -> None:
        """Take note of an update."""
        self.num_good += 1
        if self.num_good == _NUM_GOOD:
            self.value, self.num_good = min(_LARGEST, self.value * 2), 0

    def tensor(self) -> Tensor:
        """Its state for a checkpoint: scale and number of updates, (2) in float64."""
        return torch.tensor([self.value, self.num_good], dtype=torch.float64)

    def load(self, state: Tensor | None) -> None:
        """Take over what ``tensor`` gave; start afresh where there is none."""
        value, num_good = (_FIRST, 0) if state is None else state.tolist()
        self.value, self.num_good = value, int(num_good)
