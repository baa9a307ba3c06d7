"""From features to what a contrastive loss compares: the projectors of SCPL.

Source: "Supervised Contrastive Parallel Learning" (arXiv 2602.00062), and the authors' code:
flattened maps, and a linear layer or an MLP of one hidden layer behind them.

Token rows are averaged over their tokens: flattened they would be as long as the text or image.
"""

from __future__ import annotations

from math import prod

from torch import nn

from ppll.auxiliary.features import MeanToken, refuse_tokens, unreadable
from ppll.errors import RecipeError
from ppll.site import BlockSite

__all__ = ["projector"]


def projector(site: BlockSite, *, hidden: int = 512) -> nn.Module:
    """A projector of the features at a cut.

    Args:
        site: The cut; features are (C, H, W), (T, D) or (D).
        hidden: Hidden units of the MLP; with 0 there is a linear layer alone.

    Raises:
        ModelError: Features have another number of dimensions, or every token has a target.
        RecipeError: ``hidden`` is negative.
    """
    if hidden < 0:
        raise RecipeError(f"projector: hidden must be at least 0, found {hidden}.")
    refuse_tokens("projector", site)
    shape = site.feature_shape
    if not 1 <= len(shape) <= 3:
        raise unreadable("projector", site)
    has_tokens = len(shape) == 2
    reading = MeanToken() if has_tokens else nn.Flatten()
    num_inputs = shape[1] if has_tokens else prod(shape)
    if hidden == 0:
        return nn.Sequential(reading, nn.Linear(num_inputs, site.num_classes))
    layers = nn.Linear(num_inputs, hidden), nn.ReLU(), nn.Linear(hidden, site.num_classes)
    return nn.Sequential(reading, *layers)
