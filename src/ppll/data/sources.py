"""The ways to a published set of images: parquet files, the official files, the Hugging Face hub.

Imports readers only where they are needed, since most stand on extras.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import torch

from ppll.data.cache import Arrays, cached
from ppll.data.dataset import Dataset
from ppll.data.published import SPLITS, ImageColumns, Layout, Part, PublishedSet, check_root
from ppll.data.split import Split
from ppll.errors import DataError
from ppll.extras import pip_install

__all__ = ["load_published"]

Files = dict[str, list[Path]]

_NUMBERED: Final = re.compile(r"-(?P<index>\d+)-of-(?P<count>\d{1,6})\.")


def load_published(published: PublishedSet, root: Path | None) -> Dataset:
    """Read a set from local files, else download it; what was decoded is kept in the cache.

    Its files are looked for in ``root`` and ``root/<name>``, and without a root in
    ``$PPLL_DATA/<name>`` and ``$PPLL_DATA``: first parquet files, then the official ones. Only
    where none are found and no root was named are they downloaded.

    Raises:
        DataError: There are no files, one is damaged, or a package is missing that reads them.
    """
    try:
        arrays = _arrays(published, root)
    except ImportError as error:
        raise DataError(
            f"data.name = {published.name!r} needs the package {error.name}, which cannot be "
            f"imported ({error}): {pip_install('pyarrow', 'pillow')}."
        ) from None
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    train, test = (Split(tensors[f"{s}.images"], tensors[f"{s}.labels"]) for s in SPLITS)
    return Dataset(train, test, published.columns.num_classes, published.mean, published.std)


def _arrays(published: PublishedSet, root: Path | None) -> Arrays:
    if root is not None:
        check_root(root, f"the files of {published.name}")
    searched = _folders(published.name, root)
    for folder, layout in itertools.product(searched, _layouts(published)):
        files = _find(folder, layout)
        if files is not None:
            sources = itertools.chain(*files.values())
            return cached(published.name, sources, partial(_read, layout, files))
    if root is not None:
        raise _nothing_found(published, searched)
    return cached(published.name, [published.hub], partial(_download, published, searched))


def _folders(name: str, root: Path | None) -> list[Path]:
    """Where local files may lie, the likeliest first."""
    if root is not None:
        return [root, root / name]
    if shared := os.environ.get("PPLL_DATA"):
        return [Path(shared) / name, Path(shared)]
    return []


def _layouts(published: PublishedSet) -> list[Layout]:
    read = partial(_read_parquet, published.columns)
    hub = Layout(("train-*.parquet",), ("test-*.parquet",), published.hub_folder, read)
    return [hub, *published.official]


def _find(above: Path, layout: Layout) -> Files | None:
    """Each part's files; none where this kind of files is not there at all."""
    for folder in (above, above / layout.folder):
        found = {
            name: sorted(folder.glob(name)) for split in SPLITS for name in layout.names(split)
        }
        missing = [name for name, files in found.items() if not files]
        if not missing:
            _check_regular(itertools.chain(*found.values()))
            for files in found.values():
                _check_complete(files)
            return {
                split: [file for name in layout.names(split) for file in found[name]]
                for split in SPLITS
            }
        if len(missing) < len(found):
            raise DataError(f"{folder} has no {missing[0]}: put it beside the others.")
    return None


def _check_regular(files: Iterable[Path]) -> None:
    """Refuse what a reader would wait at for ever."""
    for file in files:
        if not file.is_file():
            raise DataError(
                f"{file} is no regular file but a folder, a pipe, a device or a link that leads to "
                "no file: put the data set's own file there."
            )


def _check_complete(files: Sequence[Path]) -> None:
    """Refuse a part of a table whose files say of how many they are, as ``NAME-00000-of-00002``."""
    found = {file.name for file in files}
    for file in files:
        if (number := _NUMBERED.search(file.name)) is None:
            continue
        first, last = number.span("index")
        for index in range(int(number["count"])):
            other = f"{file.name[:first]}{index:0{last - first}d}{file.name[last:]}"
            if other not in found:
                raise DataError(f"{file.parent} has no {other}: put it beside the others.")
    if len({number["count"] for name in found if (number := _NUMBERED.search(name))}) > 1:
        raise DataError(
            f"{files[0].parent} holds the same twice, in files of different numbers "
            f"({files[0].name}, {files[-1].name}): leave those of one number there."
        )


def _nothing_found(published: PublishedSet, searched: Sequence[Path], also: str = "") -> DataError:
    layouts = _layouts(published)
    kinds = "; or ".join(map(str, layouts))
    looked = " and in ".join(map(str, searched)) or "no folder, since PPLL_DATA is not set"
    folders = " or ".join(dict.fromkeys(layout.folder for layout in layouts))
    return DataError(
        f"data.name = {published.name!r}: there are no files {kinds}; looked in {looked}.{also} "
        f"Name the folder that holds them, or the one above {folders}, in data.root or in the "
        f"environment variable PPLL_DATA. The parquet files are those of {published.hub}."
    )


def _read(layout: Layout, files: Files) -> Arrays:
    return _named({split: layout.read(files[split], split) for split in SPLITS})


def _named(parts: dict[str, Part]) -> Arrays:
    arrays: dict[str, npt.NDArray[Any]] = {}
    for split, (images, labels) in parts.items():
        arrays |= {f"{split}.images": images, f"{split}.labels": labels}
    return arrays


def _read_parquet(columns: ImageColumns, files: Sequence[Path], split: str) -> Part:  # noqa: ARG001
    from ppll.data.parquet import read_files

    return read_files(files, columns)


def _download(published: PublishedSet, searched: Sequence[Path]) -> Arrays:
    try:
        import datasets  # slow
    except ImportError:
        install = f" It can be downloaded after {pip_install('datasets', 'pillow')}."
        raise _nothing_found(published, searched, install) from None
    from ppll.data.parquet import decode_table

    parts = {}
    for split in SPLITS:
        # Files are named since all others would come, too: gigabytes that nobody asked for.
        files = {split: f"{published.hub_folder}/{split}-*.parquet"}
        try:
            table = datasets.load_dataset(
                published.hub, data_files=files, split=split, verification_mode="no_checks"
            ).with_format("arrow")[:]
        except Exception as error:  # the hub's client passes on whatever went wrong below it
            failed = f" The download failed: {error}."
            raise _nothing_found(published, searched, failed) from None
        parts[split] = decode_table(table, published.columns, f"{published.hub} ({split})")
    return _named(parts)
