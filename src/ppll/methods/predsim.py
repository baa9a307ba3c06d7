"""Local error signals (Nøkland and Eidnes, ICML 2019): prediction and similarity matching."""

from __future__ import annotations

from typing import Any

from torch import nn

from ppll.auxiliary.similarity_layer import similarity_layer
from ppll.auxiliary.together import HeadAndMore
from ppll.errors import RecipeError
from ppll.losses.similarity import similarity_matching
from ppll.methods.base import Lesson, LocalLoss, Paper, TaskLoss
from ppll.methods.heads import HeadMethod
from ppll.methods.options import refuse_targets_of_tokens
from ppll.site import BlockSite

__all__ = ["PredSim"]


class PredSimNetwork(HeadAndMore):
    """Head and similarity layer of a block, and the classes that it tells apart."""

    def __init__(self, head: nn.Module, other: nn.Module, num_classes: int) -> None:
        super().__init__(head, other)
        self.num_classes = num_classes


class PredSim(HeadMethod):
    """``(1 - beta) CE + beta |S(features) - S(classes)|^2``; the last block has the task alone.

    Args:
        auxiliary: Name of the head's network; the paper's pooled linear one if not given.
        auxiliary_options: Options of that network.
        beta: Weight of the similarity matching, 0 to 1. With 1 the heads learn nothing.
    """

    paper = Paper("Training Neural Networks with Local Error Signals", 2019, "arXiv 1901.06656")
    default_auxiliary = "pooled-linear"
    needs_classes = True

    def __init__(
        self,
        *,
        auxiliary: str | None = None,
        auxiliary_options: dict[str, Any] | None = None,
        beta: float = 0.99,
    ) -> None:
        super().__init__(auxiliary=auxiliary, auxiliary_options=auxiliary_options)
        if not 0 <= beta <= 1:
            raise RecipeError(f"method.beta must be from 0 to 1, found {beta:g}.")
        self.beta = beta
        self.compares_samples = beta > 0

    def build_auxiliary(self, site: BlockSite) -> nn.Module:
        """Head and similarity layer."""
        refuse_targets_of_tokens("method 'predsim'", site)
        compared = similarity_layer("predsim", site)  # First: no other head would mend its refusal.
        return PredSimNetwork(super().build_auxiliary(site), compared, site.num_classes)

    def local_loss(
        self, auxiliary: nn.Module | None, lesson: Lesson, task_loss: TaskLoss
    ) -> LocalLoss:
        """The weighted sum of prediction and similarity matching."""
        loss = super().local_loss(auxiliary, lesson, task_loss)
        if auxiliary is None:
            return loss
        assert isinstance(auxiliary, PredSimNetwork)
        compared = auxiliary.other(lesson.features)
        similarity = similarity_matching(compared, lesson.targets, auxiliary.num_classes)
        return LocalLoss((1 - self.beta) * loss.value + self.beta * similarity, loss.logits)
