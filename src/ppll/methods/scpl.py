"""SCPL (2026): every block but the last learns from a supervised contrast alone."""

from __future__ import annotations

from typing import Any

from ppll.methods.base import Paper
from ppll.methods.contrast import ContrastMethod

__all__ = ["SCPL"]


class SCPL(ContrastMethod):
    """Supervised contrastive loss on projected features; the last block has the task.

    Blocks but the last make no prediction, so they have no exit.

    Args:
        auxiliary: Name of the network that projects; the paper's MLP where it is not given.
        auxiliary_options: Options of that network.
        projection: Length of the projections.
        temperature: Of the loss, at least 0.001.
    """

    paper = Paper("Supervised Contrastive Parallel Learning", 2026, "arXiv 2602.00062")
    default_auxiliary = "projector"

    def __init__(
        self,
        *,
        auxiliary: str | None = None,
        auxiliary_options: dict[str, Any] | None = None,
        projection: int = 1024,
        temperature: float = 0.1,
    ) -> None:
        super().__init__(
            auxiliary=auxiliary,
            auxiliary_options=auxiliary_options,
            objective="contrast",
            temperature=temperature,
            projection=projection,
        )
