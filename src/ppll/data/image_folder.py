"""A folder of the user's own images, with a folder for each class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np

from ppll.data.cache import Arrays, cached
from ppll.data.dataset import Dataset
from ppll.data.progress import counted
from ppll.data.published import Labels, Pixels, check_root, content_of
from ppll.errors import DataError
from ppll.extras import pip_install

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["image_folder"]

_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm")
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "PPM")
_PARTS: Final = {"train": ("train",), "test": ("test", "val")}


def image_folder(
    root: Path | None, *, size: int | tuple[int, int], channels: Literal[1, 3] = 3
) -> Dataset:
    """Images in ``train/<class>/`` and ``test/<class>/``; without ``test``, ``val`` is tested with.

    Classes are numbered by name, images ordered by class and name. An image is turned as its EXIF
    says, made RGB or grey, cut to the middle that has the shape of ``size``, and scaled to it
    (bilinear, antialiased), so its shorter side counts. Names that begin with a dot are left out,
    and files that are no images by their ending. Mean and deviation are those of the training part.

    Args:
        root: The folder above ``train`` and ``test``.
        size: Height and width of every sample in pixels, or one number for both.
        channels: 3 for RGB, 1 for grey.

    Raises:
        DataError: The folder is not laid out like this, an image is damaged, or Pillow is missing.
    """
    if root is None:
        raise DataError(
            "data.name = 'image-folder' needs data.root: the folder that holds train/<class>/ and "
            "test/<class>/."
        )
    check_root(root, "train/<class>/ and test/<class>/")
    height, width = size if isinstance(size, tuple) else (size, size)
    if min(height, width) < 1:
        raise DataError(f"data.size must be 1 or more, found {size}.")
    parts = _listed(root.absolute())
    classes = _same_classes(parts)
    arrays = _decoded(parts, (height, width), channels)
    train, test = ((arrays[f"{p}.images"], arrays[f"{p}.labels"]) for p in _PARTS)
    return Dataset.from_arrays(train=train, test=test, num_classes=len(classes))


class _Image(NamedTuple):
    """A file, and how it was found: other content has another size or time of change."""

    path: Path
    state: str


@dataclass(frozen=True)
class _Folder:
    """One part: the images of every class, both by name."""

    path: Path
    images: Mapping[str, Sequence[_Image]]


def _listed(root: Path) -> dict[str, _Folder]:
    try:
        return {part: _list_part(root, names) for part, names in _PARTS.items()}
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from None


def _list_part(root: Path, names: Sequence[str]) -> _Folder:
    for path in (root / name for name in names):
        _refuse_dead_link(path)
        if path.is_dir():
            break
    else:
        raise DataError(
            f"data.root = {root} has no folder {' or '.join(names)}: images lie in "
            "train/<class>/ and test/<class>/."
        )
    entries = _visible(path)
    for entry in entries:
        _refuse_dead_link(entry.path)
    if stray := [entry for entry in entries if _is_image(entry)]:
        raise DataError(f"{stray[0].path} lies in no class: put it in a folder {path}/<class>.")
    images = {entry.name: _list_class(entry.path) for entry in entries if entry.is_dir()}
    if not images:
        raise DataError(f"{path} holds no classes: put each one's images in {path}/<class>.")
    return _Folder(path, images)


def _refuse_dead_link(path: Path | str) -> None:
    """Refuse a part or a class on a disk that is not there: the others would pass for all."""
    if os.path.islink(path) and not os.path.exists(path):
        raise DataError(f"{path} is a link that leads nowhere: mend it, or take it away.")


def _list_class(path: str) -> list[_Image]:
    entries = _visible(path)
    if folders := [entry for entry in entries if entry.is_dir()]:
        raise DataError(
            f"{folders[0].path} is a folder in a class: put its images in {path} itself."
        )
    images = [entry for entry in entries if _is_image(entry)]
    if not images:
        raise DataError(
            f"{path} holds no image ({', '.join(_SUFFIXES)}): add some, or take the folder away."
        )
    return [_found(image) for image in images]


def _found(entry: os.DirEntry[str]) -> _Image:
    if not entry.is_file():
        raise DataError(f"{entry.path} is no file: a link that leads nowhere, or a device.")
    status = entry.stat()
    return _Image(Path(entry.path), f"{entry.path} {status.st_size} {status.st_mtime_ns}")


def _visible(path: Path | str) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:  # It knows of most entries what they are without asking.
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(_SUFFIXES) and not entry.is_dir()


def _same_classes(parts: Mapping[str, _Folder]) -> list[str]:
    train, test = parts["train"], parts["test"]
    differences = [
        f"only {one.path} has {', '.join(map(repr, names))}"
        for one, other in ((train, test), (test, train))
        if (names := [name for name in one.images if name not in other.images])
    ]
    if differences:
        raise DataError(f"both parts must have the same classes, but {'; '.join(differences)}.")
    return list(train.images)


def _decoded(parts: Mapping[str, _Folder], size: tuple[int, int], channels: int) -> Arrays:
    images = [i for part in parts.values() for images in part.images.values() for i in images]
    try:
        version = metadata.version("pillow")  # Another one may decode a JPEG to other pixels.
        recipe = f"8 bits, size {size}, channels {channels}, pillow {version}"
        sources = [recipe, *(image.state for image in images)]
        return cached("image-folder", sources, partial(_decode, parts, size, channels))
    except (metadata.PackageNotFoundError, ImportError):
        raise DataError(
            "data.name = 'image-folder' needs Pillow, which cannot be imported: "
            f"{pip_install('pillow')}."
        ) from None


def _decode(parts: Mapping[str, _Folder], size: tuple[int, int], channels: int) -> Arrays:
    arrays: dict[str, Pixels | Labels] = {}
    for name, part in parts.items():
        labelled = [(i.path, c) for c, found in enumerate(part.images.values()) for i in found]
        images = _room(len(labelled), channels, *size)
        for index, (file, _) in enumerate(counted(str(part.path), labelled)):
            images[index] = _decode_image(file, size, channels)
        arrays[f"{name}.images"] = images
        arrays[f"{name}.labels"] = np.array([label for _, label in labelled], np.int64)
    return arrays


def _room(number: int, channels: int, height: int, width: int) -> Pixels:
    try:
        return np.empty((number, channels, height, width), np.uint8)
    except (MemoryError, ValueError):  # numpy counts no more bytes than 63 bits hold
        raise DataError(
            f"{number} images of {height} x {width} pixels do not fit into memory: choose a "
            "smaller data.size."
        ) from None


def _decode_image(file: Path, size: tuple[int, int], channels: int) -> Pixels:
    from ppll.data.images import check_depth, decode_image

    content = content_of(file)
    finish = partial(_fitted, size=size, mode="RGB" if channels == 3 else "L")
    try:
        return decode_image(content, _FORMATS, check_depth, finish)
    except DataError as error:
        raise DataError(f"the image {file} {error}") from None


def _fitted(image: Image.Image, size: tuple[int, int], mode: str) -> Image.Image:
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if "transparency" in image.info:
        image = image.convert("RGBA")  # A palette with transparent colours has no other way.
    height, width = size
    return ImageOps.fit(image.convert(mode), (width, height), Image.Resampling.BILINEAR)
