"""ZeroLock (2026): the task loss, and a pull towards the prediction of the block before."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor, nn

from ppll.errors import RecipeError
from ppll.losses.distillation import kl_divergence
from ppll.methods.base import Lesson, LocalLoss, Paper, TaskLoss
from ppll.methods.heads import HeadMethod
from ppll.site import BlockSite

__all__ = ["ZeroLock"]

PREDICTION: Final = "prediction"
"""The second part of a message: logits of the block before, before its update."""


class ZeroLock(HeadMethod):
    """``alpha * CE(p_k, y) + (1 - alpha) * KL(p_k || p_{k-1})``; the first block has the task only.

    The paper reads a language model's blocks through its frozen readout, as the auxiliary network
    ``frozen-readout`` does; by default every block has a head of its own. The prediction travels as
    the second part of the message, so the next block's forward does not wait for it.

    Args:
        auxiliary: Name of the head's network; DGL's where it is not given.
        auxiliary_options: Options of that network.
        alpha: Weight of the task, above 0, at most 1.
    """

    paper = Paper("ZeroLock", 2026, "arXiv 2608.07974")
    default_auxiliary = "mlp-sr"
    late_fields = (PREDICTION,)
    needs_classes = True  # The divergence is of their probabilities.

    def __init__(
        self,
        *,
        auxiliary: str | None = None,
        auxiliary_options: dict[str, Any] | None = None,
        alpha: float = 0.7,
    ) -> None:
        super().__init__(auxiliary=auxiliary, auxiliary_options=auxiliary_options)
        if not 0 < alpha <= 1:
            raise RecipeError(f"method.alpha must be above 0 and at most 1, found {alpha:g}.")
        self.alpha = alpha

    def local_loss(
        self, auxiliary: nn.Module | None, lesson: Lesson, task_loss: TaskLoss
    ) -> LocalLoss:
        """The task's loss and the divergence from the prediction of the block before."""
        loss = super().local_loss(auxiliary, lesson, task_loss)
        before = lesson.late.get(PREDICTION)
        if before is None or loss.logits is None:
            return loss
        pull = kl_divergence(loss.logits, before)
        return LocalLoss(self.alpha * loss.value + (1 - self.alpha) * pull, loss.logits)

    def late_part(self, lesson: Lesson, loss: LocalLoss) -> dict[str, Tensor]:
        """The block's own prediction."""
        del lesson
        assert loss.logits is not None
        return {PREDICTION: loss.logits.float()}

    def late_shapes(self, site: BlockSite) -> dict[str, tuple[int, ...]]:
        """The logits' own."""
        return {PREDICTION: site.output_shape}
