"""From features back to the image: the decoder of InfoPro.

Source: Wang et al., "Revisiting Locally Supervised Learning" (ICLR 2021), and the authors' code:
bilinear interpolation to the image's size (corners on corners), a 3x3 convolution to 12 channels
with batch norm and ReLU, and a 3x3 convolution to the image's channels. The sigmoid belongs to the
loss here, which is more exact so.

Token rows are laid back on their place in the image first, without the class token.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from torch import nn

from ppll.auxiliary.maps import Resize, as_map, bilinear_weights, convolution, token_grid
from ppll.errors import ModelError
from ppll.site import BlockSite

__all__ = ["image_decoder"]

_WIDTH: Final = 12


def image_decoder(method: str, site: BlockSite) -> nn.Module:
    """What reconstructs images (N, C, H, W), before a sigmoid, from the features at a cut.

    Args:
        method: Who reconstructs, for messages.
        site: The cut; features are maps or token rows that lie on the image like patches.

    Raises:
        ModelError: The data holds no images, or features have no place on them.
    """
    if len(site.input_shape) != 3:
        raise ModelError(
            f"method {method!r} reconstructs images (channels, height, width), but samples have "
            f"the shape {site.input_shape}: choose other data or another method.name."
        )
    if not _lies_on_image(site):
        raise ModelError(
            f"method {method!r} reconstructs images from maps (C, H, W) or from token rows that "
            f"lie on the image like patches, found features of shape {site.feature_shape} at a "
            "cut: cut elsewhere (split.cuts) or choose another method.name."
        )
    reading, (channels, *size) = as_map(method, site)
    image_channels, *image_size = site.input_shape
    before, after = (size[0], size[1]), (image_size[0], image_size[1])
    resize = Resize(before, after, bilinear_weights) if before != after else nn.Identity()
    return nn.Sequential(
        OrderedDict(
            reading=reading,
            resize=resize,
            convolution=convolution(channels, _WIDTH, after, bias=True),
            norm=nn.BatchNorm2d(_WIDTH),
            relu=nn.ReLU(),
            image=convolution(_WIDTH, image_channels, after, bias=True),
        )
    )


def _lies_on_image(site: BlockSite) -> bool:
    match site.feature_shape:
        case (_, _, _):
            return True
        case (num_tokens, _):
            return token_grid(num_tokens, site.input_shape) is not None
    return False
