"""Momentum auxiliary networks: MAN (Su et al., ECCV 2024) and MAN++ (2025)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import Tensor, nn

from ppll.auxiliary import auxiliaries
from ppll.auxiliary.momentum import MomentumLayer
from ppll.errors import ModelError, RecipeError
from ppll.methods.base import Paper
from ppll.methods.heads import HeadMethod
from ppll.site import BlockSite

__all__ = ["MAN", "MANPlusPlus"]


class MAN(HeadMethod):
    """Cross-entropy of a head behind a layer like the next block's first, learned and followed.

    The parameters of that layer come over the side channel, ``lag`` training messages late.

    Args:
        auxiliary: Name of the head's network; DGL's where it is not given.
        auxiliary_options: Options of that network.
        lag: Training messages by which the next block's parameters are behind, 1 to 63.
        momentum: Of their moving average, 0 to below 1.
    """

    paper = Paper(
        "Momentum Auxiliary Network for Supervised Local Learning", 2024, "arXiv 2407.05623"
    )
    default_auxiliary = "mlp-sr"
    slow_from = "next"
    scales: ClassVar[bool] = False

    def __init__(
        self,
        *,
        auxiliary: str | None = None,
        auxiliary_options: dict[str, Any] | None = None,
        lag: int = 2,
        momentum: float = 0.995,
    ) -> None:
        super().__init__(auxiliary=auxiliary, auxiliary_options=auxiliary_options)
        if lag < 1:
            raise RecipeError(f"method.lag must be at least 1, found {lag}.")
        if not 0 <= momentum < 1:
            raise RecipeError(f"method.momentum must be from 0 to below 1, found {momentum:g}.")
        self.lag = lag
        self.momentum = momentum

    def build_auxiliary(self, site: BlockSite) -> nn.Module:
        """The two layers and the head that reads their sum.

        Raises:
            ModelError: The next block's first layer has no parameters, or the head cannot read
                what it makes.
        """
        site.layers_behind[0].check_copied()
        if not [*site.layers_behind[0].module.parameters()]:
            raise ModelError(
                f"the method follows the parameters of the next block's first layer, but "
                f"{site.layers_behind[0]} has none: cut before a layer that has some "
                f"(split.cuts), or choose another method.name."
            )
        behind = dataclasses.replace(
            site,
            feature_shape=site.shapes_behind[0],
            layers_behind=site.layers_behind[1:],
            shapes_behind=site.shapes_behind[1:],
        )
        head = auxiliaries.build(self.auxiliary, self.auxiliary_options, behind)
        layer = site.layers_behind[0].module
        return MomentumLayer(layer, head, self.momentum, self.scales)

    def take_slow(self, auxiliary: nn.Module, parameters: Tensor) -> None:
        """Move the following layer."""
        assert isinstance(auxiliary, MomentumLayer)
        auxiliary.follow(parameters)


class MANPlusPlus(MAN):
    """MAN whose learned and following layer are weighted by a learned scale."""

    paper = Paper("MAN++: Scaling Momentum Auxiliary Network", 2025, "arXiv 2507.16279")
    scales = True
