"""LoPT (2026): blocks that learn to keep what they read; the last one learns the task."""

from __future__ import annotations

from torch import Tensor, nn

from ppll.auxiliary.input_decoder import input_decoder
from ppll.losses.reconstruction import input_reconstruction
from ppll.methods.base import Lesson, LocalLoss, Method, Paper, TaskLoss
from ppll.methods.options import check_positive
from ppll.site import BlockSite

__all__ = ["LoPT"]


class LoPT(Method):
    """``weight * MSE(decoder(h_k), sg[h_{k-1}])`` in all blocks but the last.

    These need no labels and make no prediction.

    Args:
        weight: Of the reconstruction, above 0.
    """

    paper = Paper("LoPT", 2026, "arXiv 2605.04913")

    def __init__(self, *, weight: float = 10.0) -> None:
        check_positive(weight=weight)
        self.weight = weight

    def build_auxiliary(self, site: BlockSite) -> nn.Module:
        """The decoder from the block's features to its input."""
        return input_decoder(site)

    def local_loss(
        self, auxiliary: nn.Module | None, lesson: Lesson, task_loss: TaskLoss
    ) -> LocalLoss:
        """What is missing of the block's own input; in the last block the task's loss."""
        if auxiliary is None:
            return super().local_loss(auxiliary, lesson, task_loss)
        error = input_reconstruction(auxiliary(lesson.features), lesson.inputs)
        return LocalLoss(self.weight * error, None)

    def exit(self, auxiliary: nn.Module | None, features: Tensor) -> Tensor | None:
        """The network's own output; the other blocks make no prediction."""
        return features if auxiliary is None else None
