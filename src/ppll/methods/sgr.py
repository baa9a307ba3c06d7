"""Successive Gradient Reconciliation (Yang et al., ICML 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from ppll.losses.reconciliation import gradient_distance
from ppll.methods.base import Lesson, LocalLoss, Paper, TaskLoss
from ppll.methods.heads import HeadMethod
from ppll.methods.options import check_not_negative
from ppll.site import BlockSite

__all__ = ["SGR"]

GRADIENT: Final = "gradient"
"""The second part of a message: gradient of the block's task loss with respect to its output."""


@dataclass(frozen=True)
class ReconciledLoss(LocalLoss):
    """A local loss, and what the next block is to reconcile its own gradient with.

    Attributes:
        gradient: In every sample, that of its own task loss with respect to the features (N, ...).
    """

    gradient: Tensor


class SGR(HeadMethod):
    """``CE_k + strength * ||dCE_k/dh_{k-1} - sg[dCE_{k-1}/dh_{k-1}]||^2``, by sample.

    A block's gradient with respect to its input is drawn towards the one that the block before had
    with respect to its output, which is the same tensor. That gradient travels as the second part
    of the message; the first block has none to reconcile with.

    Args:
        auxiliary: Name of the head's network; DGL's where it is not given.
        auxiliary_options: Options of that network.
        strength: Weight of the distance, at least 0.
    """

    paper = Paper(
        "Towards Interpretable Deep Local Learning with Successive Gradient Reconciliation",
        2024,
        "arXiv 2406.05222",
    )
    default_auxiliary = "mlp-sr"
    late_fields = (GRADIENT,)
    needs_input_gradient = True

    def __init__(
        self,
        *,
        auxiliary: str | None = None,
        auxiliary_options: dict[str, Any] | None = None,
        strength: float = 0.01,
    ) -> None:
        super().__init__(auxiliary=auxiliary, auxiliary_options=auxiliary_options)
        check_not_negative(strength=strength)
        self.strength = strength

    def local_loss(
        self, auxiliary: nn.Module | None, lesson: Lesson, task_loss: TaskLoss
    ) -> LocalLoss:
        """The task's loss, and the distance from the gradient of the block before."""
        logits = self.exit(auxiliary, lesson.features)
        assert logits is not None
        loss = task_loss(logits, lesson.targets)
        # Of a mean they would be so small that float16 loses them.
        losses = len(lesson.features) * loss
        before = lesson.late.get(GRADIENT)
        if before is None:
            (outgoing,) = _gradients(losses, [lesson.features], is_differentiated=False)
            return ReconciledLoss(loss, logits, outgoing)
        outgoing, incoming = _gradients(
            losses, [lesson.features, lesson.inputs], is_differentiated=True
        )
        distance = gradient_distance(incoming, before)
        return ReconciledLoss(loss + self.strength * distance, logits, outgoing)

    def late_part(self, lesson: Lesson, loss: LocalLoss) -> dict[str, Tensor]:
        """In every sample, the gradient of its own loss with respect to the block's output; of any
        number of samples it is the same."""
        del lesson
        assert isinstance(loss, ReconciledLoss)
        return {GRADIENT: loss.gradient}

    def late_shapes(self, site: BlockSite) -> dict[str, tuple[int, ...]]:
        """The features' own."""
        return {GRADIENT: site.feature_shape}


def _gradients(
    loss: Tensor, tensors: Sequence[Tensor], *, is_differentiated: bool
) -> tuple[Tensor, ...]:
    """Of the loss with respect to each tensor; its graph is still needed for the backward."""
    return torch.autograd.grad(loss, tensors, retain_graph=True, create_graph=is_differentiated)
