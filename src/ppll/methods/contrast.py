"""Methods whose head learns from the task or, as a projector, from a contrast of the classes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final, Literal, TypeAlias

from torch import Tensor, nn

from ppll.auxiliary import auxiliaries
from ppll.errors import RecipeError
from ppll.losses.contrastive import supervised_contrastive
from ppll.methods.base import Lesson, LocalLoss, TaskLoss
from ppll.methods.heads import HeadMethod
from ppll.methods.options import check_positive, refuse_targets_of_tokens
from ppll.site import BlockSite

__all__ = ["ContrastMethod", "Objective"]

_COLDEST: Final = 1e-3
"""Below, shares of the batch leave what float32 can tell apart."""

_NO_PROJECTORS: Final = {
    "pooled-linear": "is zero at first, and a contrast of zeros has no gradient",
    "frozen-readout": "makes the network's own logits, whatever method.projection says",
}

Objective: TypeAlias = Literal["softmax", "contrast"]


class ContrastMethod(HeadMethod):
    """A head behind every block, and one of InfoPro's two objectives for it.

    With ``"contrast"`` the head projects and blocks but the last make no prediction.

    Args:
        auxiliary: Name of the head's network; InfoPro's where it is not given.
        auxiliary_options: Options of that network.
        objective: The task loss on the head's logits, or the supervised contrastive loss on its
            projections.
        temperature: Of the contrastive loss, at least 0.001.
        projection: Length of the projections.
    """

    default_auxiliary = "conv-2fc"

    def __init__(
        self,
        *,
        auxiliary: str | None = None,
        auxiliary_options: dict[str, Any] | None = None,
        objective: Objective = "softmax",
        temperature: float = 0.07,
        projection: int = 128,
    ) -> None:
        super().__init__(auxiliary=auxiliary, auxiliary_options=auxiliary_options)
        check_positive(projection=projection)
        if not _COLDEST <= temperature < math.inf:
            raise RecipeError(
                f"method.temperature must be at least {_COLDEST} and finite, found {temperature:g}."
            )
        if objective == "contrast" and (why := _NO_PROJECTORS.get(self.auxiliary)):
            raise RecipeError(
                f"method.auxiliary = {self.auxiliary!r} {why}: choose another for a contrast, such "
                f"as 'projector'."
            )
        self.objective = objective
        self.needs_classes = self.compares_samples = objective == "contrast"
        self.temperature = temperature
        self.projection = projection

    def build_auxiliary(self, site: BlockSite) -> nn.Module:
        """The head: a classifier, or a projector of the same shape."""
        if self.objective == "contrast":
            refuse_targets_of_tokens("a contrast", site)
            site = replace(site, num_classes=self.projection)
        return auxiliaries.build(self.auxiliary, self.auxiliary_options, site)

    def local_loss(
        self, auxiliary: nn.Module | None, lesson: Lesson, task_loss: TaskLoss
    ) -> LocalLoss:
        """The head's objective; the last block always has the task."""
        if auxiliary is None or self.objective == "softmax":
            return super().local_loss(auxiliary, lesson, task_loss)
        projections = auxiliary(lesson.features)
        contrast = supervised_contrastive(projections, lesson.targets, temperature=self.temperature)
        return LocalLoss(contrast, None)

    def exit(self, auxiliary: nn.Module | None, features: Tensor) -> Tensor | None:
        """The head's prediction, where it makes one."""
        if auxiliary is not None and self.objective == "contrast":
            return None
        return super().exit(auxiliary, features)
