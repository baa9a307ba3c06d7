"""InfoPro (Wang et al., ICLR 2021): keep what the image says, drop what the task does not need."""

from __future__ import annotations

from typing import Any

from torch import nn

from ppll.auxiliary.image_decoder import image_decoder
from ppll.auxiliary.together import HeadAndMore
from ppll.data.loader import IMAGE
from ppll.losses.reconstruction import image_reconstruction
from ppll.methods.base import Lesson, LocalLoss, Paper, TaskLoss
from ppll.methods.contrast import ContrastMethod, Objective
from ppll.methods.options import check_not_negative
from ppll.site import BlockSite

__all__ = ["InfoPro"]


class InfoProNetwork(HeadAndMore):
    """Head and decoder of a block, with the weights of their losses."""

    def __init__(
        self, head: nn.Module, other: nn.Module, reconstruction_weight: float, task_weight: float
    ) -> None:
        super().__init__(head, other)
        self.reconstruction_weight = reconstruction_weight
        self.task_weight = task_weight


class InfoPro(ContrastMethod):
    """``lambda1 R + lambda2 T``: R reconstructs the image, T is the head's objective.

    Both weights go linearly from the first block to the last but one; the last has the task alone.

    Args:
        auxiliary: Name of the head's network; the paper's 1c2f where it is not given.
        auxiliary_options: Options of that network.
        objective: The task loss on the head's logits, or the supervised contrastive loss on its
            projections; blocks then make no prediction.
        temperature: Of the contrastive loss, at least 0.001.
        projection: Length of the projections.
        lambda1_first: Weight of the reconstruction in the first block, at least 0.
        lambda1_last: The same in the last block but one.
        lambda2_first: Weight of the head's objective in the first block, at least 0.
        lambda2_last: The same in the last block but one.
    """

    paper = Paper(
        "Revisiting Locally Supervised Learning: an Alternative to End-to-end Training",
        2021,
        "arXiv 2101.10832",
    )
    fields = (IMAGE,)

    def __init__(
        self,
        *,
        auxiliary: str | None = None,
        auxiliary_options: dict[str, Any] | None = None,
        objective: Objective = "softmax",
        temperature: float = 0.07,
        projection: int = 128,
        lambda1_first: float = 5.0,
        lambda1_last: float = 0.5,
        lambda2_first: float = 0.5,
        lambda2_last: float = 1.0,
    ) -> None:
        super().__init__(
            auxiliary=auxiliary,
            auxiliary_options=auxiliary_options,
            objective=objective,
            temperature=temperature,
            projection=projection,
        )
        check_not_negative(
            lambda1_first=lambda1_first,
            lambda1_last=lambda1_last,
            lambda2_first=lambda2_first,
            lambda2_last=lambda2_last,
        )
        self.lambda1 = lambda1_first, lambda1_last
        self.lambda2 = lambda2_first, lambda2_last

    def build_auxiliary(self, site: BlockSite) -> nn.Module:
        """Head and decoder, with their weights."""
        weights = _interpolated(self.lambda1, site), _interpolated(self.lambda2, site)
        decoder = image_decoder("infopro", site)  # First: no other head would mend what it refuses.
        return InfoProNetwork(super().build_auxiliary(site), decoder, *weights)

    def local_loss(
        self, auxiliary: nn.Module | None, lesson: Lesson, task_loss: TaskLoss
    ) -> LocalLoss:
        """The weighted sum of reconstruction and objective."""
        loss = super().local_loss(auxiliary, lesson, task_loss)
        if auxiliary is None:
            return loss
        assert isinstance(auxiliary, InfoProNetwork)
        error = image_reconstruction(auxiliary.other(lesson.features), lesson.fields[IMAGE])
        weighted = auxiliary.reconstruction_weight * error + auxiliary.task_weight * loss.value
        return LocalLoss(weighted, loss.logits)


def _interpolated(ends: tuple[float, float], site: BlockSite) -> float:
    """A weight at a block, linear in its position among those that are not the last."""
    first, last = ends
    steps = max(1, site.num_blocks - 2)
    return first + (last - first) * site.block_index / steps
