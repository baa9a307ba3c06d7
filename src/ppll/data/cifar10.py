"""CIFAR-10: 60,000 colour images of ten kinds of things, from local files or by download."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy.typing as npt
import torch

from ppll.data.cache import Arrays, cached
from ppll.data.dataset import Dataset, Split
from ppll.errors import DataError

if TYPE_CHECKING:
    from ppll.data.parquet import ImageColumns

__all__ = ["cifar10"]

_NAME: Final = "uoft-cs/cifar10"
_NUM_CLASSES: Final = 10
_SPLITS: Final = ("train", "test")
_MEAN: Final = (0.4914, 0.4822, 0.4465)
_STD: Final = (0.2470, 0.2435, 0.2616)

Files = dict[str, list[Path]]


def cifar10(root: Path | None) -> Dataset:
    """50,000 images to train and 10,000 to test with, RGB of 32 by 32, in ten classes.

    Files ``train-*.parquet`` and ``test-*.parquet`` of the Hugging Face set ``uoft-cs/cifar10`` are
    looked for in ``root`` and ``root/cifar10``, and without a root in ``$PPLL_DATA/cifar10`` and
    ``$PPLL_DATA``. Where none are found and no root was named, Hugging Face ``datasets`` downloads
    them. They are decoded once and then read from the cache.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Args:
        root: Folder of local files.

    Raises:
        DataError: There are no files, one is damaged, or a package is missing that reads them.
    """
    try:
        return _as_dataset(_arrays(root))
    except ImportError as error:
        raise DataError(
            f"data.name = 'cifar10' needs the package {error.name}, which cannot be imported "
            f"({error}): pip install 'ppll[datasets]'."
        ) from None


def _arrays(root: Path | None) -> Arrays:
    searched = _folders(root)
    files = _find(searched)
    if files is not None:
        return cached("cifar10", itertools.chain(*files.values()), lambda: _read(files))
    if root is not None:
        raise _nothing_found(searched)
    return cached("cifar10", [_NAME], lambda: _download(searched))


def _folders(root: Path | None) -> list[Path]:
    """Where local files may lie, the likeliest first."""
    if root is not None:
        return [root.expanduser(), root.expanduser() / "cifar10"]
    if shared := os.environ.get("PPLL_DATA"):
        return [Path(shared) / "cifar10", Path(shared)]
    return []


def _find(folders: Iterable[Path]) -> Files | None:
    """Each split's files, from the first folder that has any."""
    for folder in folders:
        files = {split: sorted(folder.glob(f"{split}-*.parquet")) for split in _SPLITS}
        missing = [split for split in _SPLITS if not files[split]]
        if not missing:
            return files
        if len(missing) < len(_SPLITS):
            raise DataError(f"{folder} has no {missing[0]}-*.parquet: put it beside the others.")
    return None


def _nothing_found(searched: Sequence[Path], also: str = "") -> DataError:
    looked = " and in ".join(map(str, searched)) or "no folder, since PPLL_DATA is not set"
    return DataError(
        "data.name = 'cifar10': there are no files train-*.parquet and test-*.parquet; looked in "
        f"{looked}.{also} Name the folder that holds the files of {_NAME} in data.root or in the "
        "environment variable PPLL_DATA."
    )


def _columns() -> ImageColumns:
    from ppll.data.parquet import ImageColumns  # needs extras

    return ImageColumns("img", "label", size=(32, 32), num_classes=_NUM_CLASSES)


def _read(files: Files) -> Arrays:
    from ppll.data.parquet import read_files  # needs extras

    arrays: dict[str, npt.NDArray[Any]] = {}
    for split in _SPLITS:
        arrays[f"{split}.images"], arrays[f"{split}.labels"] = read_files(files[split], _columns())
    return arrays


def _download(searched: Sequence[Path]) -> Arrays:
    try:
        import datasets  # an extra, and slow
    except ImportError:
        install = " It can be downloaded after pip install 'ppll[datasets]'."
        raise _nothing_found(searched, install) from None
    from ppll.data.parquet import decode_table  # needs extras

    arrays: dict[str, npt.NDArray[Any]] = {}
    for split in _SPLITS:
        try:
            table = datasets.load_dataset(_NAME, split=split).with_format("arrow")[:]
        except Exception as error:  # the hub's client passes on whatever went wrong below it
            raise _nothing_found(searched, f" The download failed: {error}.") from None
        decoded = decode_table(table, _columns(), f"{_NAME} ({split})")
        arrays[f"{split}.images"], arrays[f"{split}.labels"] = decoded
    return arrays


def _as_dataset(arrays: Arrays) -> Dataset:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    train, test = (Split(tensors[f"{s}.images"], tensors[f"{s}.labels"]) for s in _SPLITS)
    return Dataset(train, test, _NUM_CLASSES, _MEAN, _STD)
