"""What auxiliary networks read at a cut: maps, token rows or vectors."""

from __future__ import annotations

from torch import Tensor, nn

from ppll.errors import ModelError
from ppll.site import BlockSite

__all__ = ["MeanToken", "is_channels_last", "refuse_tokens", "unreadable"]


class MeanToken(nn.Module):
    """Token rows (N, T, D) to their mean (N, D)."""

    def forward(self, tokens: Tensor) -> Tensor:
        """The mean over all tokens of a row."""
        return tokens.mean(1)


def is_channels_last(site: BlockSite) -> bool:
    """Whether features have the shape of maps (H, W, C), as those of Swin transformers.

    Their first two sides then have the image's proportions, their last two have not, and there are
    more channels than rows: fewer are the columns of maps (C, H, W) with as many channels as rows.
    """
    match site.feature_shape, site.input_shape:
        case (first, second, third), (_, height, width):
            is_image = first * width == second * height
            return is_image and second * width != third * height and third > first
    return False


def unreadable(
    reader: str, site: BlockSite, instead: str = "choose another method.auxiliary"
) -> ModelError:
    """The error for features of a shape that an auxiliary network has no reading for.

    Args:
        reader: Who reads them.
        site: The cut.
        instead: What to do beside cutting elsewhere.
    """
    what = (
        "at a cut, which look like maps (H, W, C): let the layers around the cut hand on (C, H, W)"
        if is_channels_last(site)
        else f"at a cut: cut elsewhere (split.cuts) or {instead}"
    )
    return ModelError(
        f"{reader!r} reads maps (C, H, W), token rows (T, D) and vectors (D), found features of "
        f"shape {site.feature_shape} {what}."
    )


def refuse_tokens(auxiliary: str, site: BlockSite) -> None:
    """Refuse a language model, for what mixes tokens with those that follow them.

    Raises:
        ModelError: Every token has a target.
    """
    if site.predicts_tokens:
        raise ModelError(
            f"{auxiliary!r} mixes a token with those that follow it, which are to be predicted: "
            "choose method.auxiliary = 'linear', 'mlp-sr' or 'auglocal', or another method.name."
        )
