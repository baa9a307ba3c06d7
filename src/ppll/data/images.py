"""One image file decoded, or refused in words.

Imports Pillow, which is an extra: import this module only where it is needed.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from ppll.errors import DataError

__all__ = ["decode_image"]


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
            pixels = np.asarray(finish(image))
    except DataError:
        raise
    except Exception as error:  # what Pillow's decoders raise has no common type
        raise DataError(f"cannot be decoded ({type(error).__name__}: {error}).") from None
    return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
