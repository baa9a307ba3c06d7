"""ContSup (2023): blocks are supplied with what the blocks before may have thrown away."""

from __future__ import annotations

from typing import Any

from torch import nn

from ppll.auxiliary.context import ContextChoice, build_context, check_context
from ppll.data.loader import IMAGE
from ppll.methods.base import Paper
from ppll.methods.contrast import ContrastMethod, Objective
from ppll.site import BlockSite

__all__ = ["ContSup"]


class ContSup(ContrastMethod):
    """InfoPro's objective on a head, and context that is added to every input but the first.

    The encoders of context learn with the block that adds it, and stay in the network.

    Args:
        auxiliary: Name of the head's network; InfoPro's 1c2f where it is not given.
        auxiliary_options: Options of that network.
        objective: The task loss on the head's logits, or the supervised contrastive loss on its
            projections; blocks then make no prediction.
        temperature: Of the contrastive loss, at least 0.001.
        projection: Length of the projections.
        context: ``"E"`` for the encoded image, ``"R1"`` for the encoded input of the block before,
            ``"R1E"`` for both.
    """

    paper = Paper(
        "Go beyond End-to-End Training: Boosting Greedy Local Learning with Context Supply",
        2023,
        "arXiv 2312.07636",
    )
    fields: tuple[str, ...] = (IMAGE,)

    def __init__(
        self,
        *,
        auxiliary: str | None = None,
        auxiliary_options: dict[str, Any] | None = None,
        objective: Objective = "softmax",
        temperature: float = 0.07,
        projection: int = 128,
        context: ContextChoice = "E",
    ) -> None:
        super().__init__(
            auxiliary=auxiliary,
            auxiliary_options=auxiliary_options,
            objective=objective,
            temperature=temperature,
            projection=projection,
        )
        self.context = context
        # Only what this choice of context reads travels.
        self.fields = (IMAGE,) if "E" in context else ()
        self.carries_input = "R1" in context

    def build_auxiliary(self, site: BlockSite) -> nn.Module:
        """The head; data without such context are refused before it is."""
        check_context(self.context, site)
        return super().build_auxiliary(site)

    def build_context(self, site: BlockSite) -> nn.Module | None:
        """The encoders of image and previous input."""
        return build_context(self.context, site)
