"""SVHN: digits of house numbers, cut out of photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ppll.data.dataset import Dataset
from ppll.data.matlab import read_arrays
from ppll.data.published import ImageColumns, Layout, Part, PublishedSet, checked_part, content_of
from ppll.data.sources import load_published
from ppll.errors import DataError

__all__ = ["SVHN", "read_matlab", "svhn"]


def svhn(root: Path | None) -> Dataset:
    """73,257 images to train and 26,032 to test with, RGB of 32 by 32; the label is the digit.

    Source: Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu and A. Y. Ng, "Reading Digits in
    Natural Images with Unsupervised Feature Learning", 2011; format 2, without its extra part.

    Args:
        root: Folder of local files: parquet files of ``ufldl-stanford/svhn``, or the official
            ``train_32x32.mat`` and ``test_32x32.mat``. See ``load_published``.

    Raises:
        DataError: There are no files, one is damaged, or a package is missing that reads them.
    """
    return load_published(SVHN, root)


def read_matlab(files: Sequence[Path], split: str) -> Part:  # noqa: ARG001
    """Read an official MATLAB file: images ``X`` (32, 32, 3, N) and labels ``y`` (N, 1).

    In the file the label of the digit 0 is 10; here it is 0.

    Raises:
        DataError: The file cannot be read, is damaged, or holds something else.
    """
    (file,) = files
    found = read_arrays(content_of(file), file)
    images, labels = (found.get(name, np.empty(0)) for name in ("X", "y"))
    fits = images.dtype == np.uint8 and images.shape[:3] == (32, 32, 3) and images.ndim <= 4
    if not fits or labels.dtype.kind not in "iu":
        raise DataError(
            f"{file} must hold X, an array (32, 32, 3, N) of uint8, and y, one (N, 1) of whole "
            f"numbers; found {_describe(images)} and {_describe(labels)}: fetch it again."
        )
    # Of a single image MATLAB leaves the last axis out.
    pixels = images.reshape(32, 32, 3, -1).transpose(3, 2, 0, 1)
    pixels, digits = checked_part(pixels, labels.ravel(), file, lowest=1, num_classes=10)
    return pixels, digits % 10


def _describe(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype} of shape {array.shape}" if array.size else "nothing"


SVHN: Final = PublishedSet(
    name="svhn",
    hub="ufldl-stanford/svhn",
    hub_folder="cropped_digits",
    columns=ImageColumns("image", "label", size=(32, 32), num_classes=10),
    mean=(0.4377, 0.4438, 0.4728),
    std=(0.1980, 0.2010, 0.1970),
    official=(Layout(("train_32x32.mat",), ("test_32x32.mat",), "svhn", read_matlab),),
)
