"""One image file decoded, or refused in words.

Imports Pillow, which is an extra: import this module only where it is needed.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from ppll.errors import DataError

__all__ = ["check_depth", "decode_image", "pixels_of"]


def decode_image(
    content: bytes,
    formats: tuple[str, ...],
    check: Callable[[Image.Image], None],
    finish: Callable[[Image.Image], Image.Image],
) -> npt.NDArray[np.uint8]:
    """The pixels of one image (C, H, W).

    Args:
        content: The whole file.
        formats: What it may be, in Pillow's words.
        check: Refuses an image by ``DataError`` before anything of it is decoded, since a small
            file may be a huge image.
        finish: Makes what is wanted of it: an image of 8 bits a channel, grey or RGB.

    Raises:
        DataError: It is damaged or of another kind; the message is the end of a sentence that
            begins with which image it is.
    """
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            check(image)
            image.verify()  # Decoding stops at the last pixel and looks at no checksum of a PNG.
        with Image.open(io.BytesIO(content), formats=formats) as image:
            return pixels_of(finish(image))
    except DataError:
        raise
    except UnidentifiedImageError:  # Its message names the object that the file was read into.
        raise DataError(f"cannot be decoded: it is no whole {' or '.join(formats)}.") from None
    except Exception as error:  # what Pillow's decoders raise has no common type
        raise DataError(f"cannot be decoded ({type(error).__name__}: {error}).") from None


def pixels_of(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The pixels (C, H, W) of an image of 8 bits a channel, grey or RGB."""
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)


def check_depth(image: Image.Image) -> None:
    """Refuse an image of more than 8 bits a channel, of which Pillow may keep the high ones only.

    Raises:
        DataError: It is such an image; the message is the end of a sentence as in ``decode_image``.
    """
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    if image.mode[0] in "IF" or any(_is_deep(image.format, tile[3]) for tile in tiles):
        raise DataError(f"has more than 8 bits a channel ({image.mode}): convert it to 8.")


def _is_deep(form: str | None, stored: Any) -> bool:
    """Whether pixels are stored so: a PNG as ``RGB;16B``, a PPM as RGB up to 65535."""
    if form == "PPM":
        return isinstance(stored, tuple) and stored[-1] > 255
    return form == "PNG" and ";16" in stored
