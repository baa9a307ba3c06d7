"""What a block does about a loss that is not a finite number."""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from ppll.errors import PpllError
from ppll.metrics import Tally

__all__ = ["LossCheck", "NonFiniteLoss", "OnNonFinite"]

OnNonFinite: TypeAlias = Literal["stop", "skip", "ignore"]
"""What a block does about a loss that is not finite: raise, make no update, or nothing."""

_LEAVE_OUT: Final = 'train.on_nonfinite = "skip" leaves such batches out'


class NonFiniteLoss(PpllError):
    """A block's loss is not a finite number, so its update was not made."""


class LossCheck:
    """Looks at one block's losses.

    To look at a number on a GPU is to wait for everything before it. So there a loss that is to
    stop the run is found in the sums that leave the device in bulk: before a checkpoint is taken,
    at the end of an epoch, and whenever metrics are written. Updates made meanwhile are never
    saved.

    Args:
        block_index: Which block's.
        on_nonfinite: What to do.
        device: Where the losses are.
    """

    def __init__(self, block_index: int, on_nonfinite: OnNonFinite, device: torch.device) -> None:
        self._block_index = block_index
        self._on_nonfinite = on_nonfinite
        self.may_leave_out = on_nonfinite == "skip"
        self.looks_late = device.type == "cuda" and on_nonfinite == "stop"

    def may_learn_from(self, loss: Tensor, step: int) -> bool:
        """Whether an update is made from the loss (scalar) of a step.

        Raises:
            NonFiniteLoss: It ends the run.
        """
        if self._on_nonfinite == "ignore" or self.looks_late:
            return True
        if math.isfinite(value := loss.item()):
            return True
        if self.may_leave_out:
            return False
        if step == 1:
            raise NonFiniteLoss(
                f"the loss of block {self._block_index} is {value} with first values, before any "
                f"update: no learning rate can be the cause, look at the loss and the data; "
                f"{_LEAVE_OUT}."
            )
        raise self._error(f"is {value}")

    def check_tally(self, tally: Tally) -> None:
        """Look at what was counted in training.

        Raises:
            NonFiniteLoss: It holds a loss that ends the run and was not looked at before.
        """
        if self.looks_late and tally.samples and not math.isfinite(tally.loss):
            raise self._error(f"became {tally.loss} within the last {tally.samples} samples")

    def check_update(self, could_be_finite: bool) -> None:
        """Look at what became of an update that needs a finite gradient.

        Raises:
            NonFiniteLoss: No smaller loss scale could have made it finite, and that ends the run.
        """
        if not could_be_finite and self._on_nonfinite == "stop":
            raise NonFiniteLoss(
                f"the gradient of block {self._block_index} is not finite, and its loss is not "
                f"scaled up any more. Lower optimizer.lr, warm up longer, or set train.precision = "
                f'"bf16".'
            )

    def _error(self, what: str) -> NonFiniteLoss:
        return NonFiniteLoss(
            f"the loss of block {self._block_index} {what}. Lower optimizer.lr, warm up longer "
            f"(schedule.warmup_epochs) or clip gradients (optimizer.clip_norm); "
            f"{_LEAVE_OUT}."
        )
