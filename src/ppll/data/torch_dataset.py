"""Torch's map-style data sets, read into memory sample by sample."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ppll.data.arrays import as_tensor
from ppll.data.progress import counted
from ppll.data.split import described
from ppll.errors import DataError

__all__ = ["MapStyle", "read_samples"]

_READ_TWICE: Final = 32
"""First samples that are read once more: even of a transform that acts on one in ten, one such
reading in a thousand sees nothing."""


class MapStyle(Protocol):
    """What gives samples by their index, as ``torch.utils.data.Dataset`` does."""

    def __len__(self) -> int:
        """How many samples there are."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """A pair of input and label."""
        ...


def read_samples(part: str, dataset: MapStyle) -> tuple[Tensor, Tensor]:
    """All samples of a data set in the order of their indices, in one tensor each way.

    Nothing is kept beside what is given back. The first samples are read twice, since a random
    transform would stay as it was drawn.

    Args:
        part: What the data set is, for messages.
        dataset: Its inputs are tensors, numpy arrays or images of Pillow, its labels whole numbers
            or, of tokens, rows of them (T), or values in floating point, () or (D).

    Returns:
        Inputs (N, ...) and labels, floating point in float32; all else in its own type, but
        labels (N) in int64.

    Raises:
        DataError: It cannot be read by index, or a sample is no such pair, is unlike the first, or
            is another one when it is read again; the message names it.
    """
    num_samples = _length(part, dataset)
    first = _sample(part, dataset, 0)
    inputs, labels = (_Rows.like(value, num_samples, part) for value in first)
    for index in counted(f"{part} of {type(dataset).__name__}", range(num_samples)):
        given, label = _sample(part, dataset, index) if index else first
        inputs.put(index, given, f"{part}: sample {index} is")
        labels.put(index, label, f"{part}: sample {index} has a label that is")
        if index < _READ_TWICE:
            read = given.clone(), label.clone()  # Some data sets give the same memory every time.
            again = _sample(part, dataset, index)
            _refuse_random(f"{part}: sample {index}", read, again)
    return inputs.values, labels.values


@dataclass(frozen=True)
class _Rows:
    """Room for one tensor of every sample.

    Attributes:
        values: (N, ...).
        first: Type and shape of the first one, which all others must have.
    """

    values: Tensor
    first: str

    @classmethod
    def like(cls, value: Tensor, number: int, part: str) -> Self:
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        try:
            return cls(torch.empty((number, *value.shape), dtype=dtype), described(value))
        except RuntimeError:
            raise DataError(
                f"{part}: {number} samples that are {described(value)} do not fit into memory: "
                f"give smaller ones, or fewer by torch.utils.data.Subset."
            ) from None

    def put(self, index: int, value: Tensor, what: str) -> None:
        if described(value) != self.first:
            raise DataError(
                f"{what} {described(value)}, but sample 0 {self.first}: give all the same shape "
                f"and type, as by a transform that is not random."
            )
        with torch.no_grad():
            self.values[index] = value


def _length(part: str, dataset: MapStyle) -> int:
    kind = type(dataset)
    has_both = hasattr(kind, "__len__") and hasattr(kind, "__getitem__")
    if not has_both or isinstance(dataset, IterableDataset):
        raise DataError(
            f"{part} must have __len__ and __getitem__, as a map-style data set of torch, found "
            f"{kind.__name__}: of a DataLoader give its .dataset; read a stream into arrays, and "
            f"give ppll.Dataset.from_arrays these."
        )
    if len(dataset) == 0:
        raise DataError(f"{part}: {kind.__name__} is empty: give samples.")
    return len(dataset)


def _sample(part: str, dataset: MapStyle, index: int) -> tuple[Tensor, Tensor]:
    """Input (...) and label (), (T) or (D) of a sample."""
    try:
        given, label = _pair(dataset[index])
        return _as_input(given), _as_label(label)
    except DataError as error:
        raise DataError(f"{part}: sample {index} {error}") from None
    except Exception as error:  # whatever the user's code raises, and Pillow where it decodes late
        raise DataError(
            f"{part}: sample {index} cannot be read ({type(error).__name__}: {error})."
        ) from error


def _pair(sample: object) -> tuple[Any, Any]:
    found = type(sample).__name__
    if isinstance(sample, tuple | list):
        if len(sample) == 2:
            return sample[0], sample[1]
        found = f"{found} of {len(sample)}"
    raise DataError(
        f"is no pair (input, label), found {found}: give a data set whose __getitem__ makes one, "
        f"and arrays to ppll.Dataset.from_arrays."
    )


def _as_input(given: Any) -> Tensor:
    if _is_picture(given):
        return _pixels(given)
    if not isinstance(given, Tensor | np.ndarray):
        raise DataError(
            f"has the input of a {type(given).__name__}: give a tensor, a numpy array or an image "
            f"of Pillow."
        )
    try:
        return as_tensor(given)
    except DataError as error:
        raise DataError(f"has an input that cannot be used: {error}") from None


def _is_picture(given: object) -> bool:
    """Whether it is an image of Pillow, which whoever has one has imported."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(given, pillow.Image)


def _pixels(image: Any) -> Tensor:
    """Bytes (C, H, W)."""
    from ppll.data.images import pixels_of

    if image.mode not in ("RGB", "L"):
        raise DataError(
            f"is an image of mode {image.mode}, but images are RGB or L: convert it, as by "
            f'image.convert("RGB").'
        )
    return as_tensor(pixels_of(image))


def _as_label(given: Any) -> Tensor:
    with suppress(DataError):
        label = as_tensor(given)
        if not (label.is_complex() or label.dtype == torch.bool):
            is_class = label.dim() == 0 and not label.is_floating_point()
            return label.long() if is_class else label
    raise DataError(
        f"has the label {given!r:.60}: give the index of its class, a whole number, or of tokens a "
        f"row of them, or values in floating point."
    )


def _refuse_random(what: str, first: tuple[Tensor, ...], again: tuple[Tensor, ...]) -> None:
    if not all(map(_same, first, again)):
        raise DataError(
            f"{what} is another one when it is read again, as by a random transform, which would "
            f"stay as it was drawn this once: leave it out, and set data.crop, data.flip, "
            f"data.randaugment, data.cutout, data.mixup or data.cutmix in the recipe."
        )


def _same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit, but that what is no number is like all of its kind."""
    if described(one) != described(other):
        return False
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
