"""Samples and their labels, checked when they are put together."""

from __future__ import annotations

import json
import math
import numbers
import operator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from ppll.data.arrays import (
    ArrayLike,
    as_tensor,
    channel_statistics,
    check_finite,
    warn_of_order,
)
from ppll.data.arrays import describe as _describe
from ppll.data.torch_dataset import MapStyle, read_samples
from ppll.durable import write_whole
from ppll.errors import DataError

__all__ = ["Dataset", "Split"]

_SHAPES = "uint8 images (N, C, H, W) or float32 of any shape (N, ...)"
_TOKENS = (torch.uint8, torch.int32, torch.int64)
_FIELDS = ("inputs", "targets", "groups")
_WHOLE_NUMBERS = (
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
)


@dataclass(frozen=True, eq=False)
class Split:
    """Samples that are used together, such as all that are trained on.

    Attributes:
        inputs: uint8 images (N, C, H, W), or float32 of any shape (N, ...); or rows of tokens
            (N, T) in uint8, int32 or int64; on the CPU.
        targets: Class indices (N), int64; of tokens the one that follows each (N, T), in the type
            of the inputs.
        groups: Of every sample, a number (N), int64, that it shares with those that it may not be
            parted from, such as the windows of one file; none where every sample stands alone.

    Raises:
        DataError: The two do not belong together, are empty, or have other types.
    """

    inputs: Tensor
    targets: Tensor
    groups: Tensor | None = None

    def __repr__(self) -> str:
        return f"Split({_describe(self.inputs)}, targets {_describe(self.targets)})"

    def __post_init__(self) -> None:
        if self.groups is not None and self.groups.shape != self.inputs.shape[:1]:
            raise DataError(
                f"groups must be of shape ({len(self.inputs)},), found {_describe(self.groups)}: "
                "give one number a sample."
            )
        if self.holds_tokens:
            _check_tokens(self.inputs, self.targets)
            return
        _check_inputs(self.inputs)
        if self.targets.dtype != torch.int64 or self.targets.dim() != 1:
            raise DataError(
                f"targets must be int64 of shape (N,), found {_describe(self.targets)}: "
                "give one class index a sample."
            )
        if len(self.inputs) != len(self.targets):
            raise DataError(
                f"there are {len(self.inputs)} inputs but {len(self.targets)} targets: "
                "give one class index a sample."
            )

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One sample's shape, without N."""
        return tuple(self.inputs.shape[1:])

    @property
    def holds_tokens(self) -> bool:
        """Whether a sample is a row of tokens (T), each with a target of its own."""
        return self.targets.dim() == self.inputs.dim() == 2

    @property
    def holds_images(self) -> bool:
        """Whether a sample has channels, height and width."""
        return self.inputs.dim() == 4


@dataclass(frozen=True, eq=False)
class Dataset:
    """What can be trained on and what is tested with.

    Attributes:
        train: Samples to learn from, and to keep a validation part of.
        test: Samples that are only ever evaluated.
        num_classes: Classes to tell apart.
        mean: Of every channel of uint8 images, 0 to 1; none for floating point, which the network
            gets as it is.
        std: Standard deviation of every channel, like ``mean``.

    Raises:
        DataError: A label is not a class, or the parts do not fit together.
    """

    train: Split
    test: Split
    num_classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        train, test = self.train.inputs, self.test.inputs
        if (train.shape[1:], train.dtype) != (test.shape[1:], test.dtype):
            raise DataError(
                f"train samples are {_describe(train)} but test samples {_describe(test)}: "
                "give both the same shape and type."
            )
        if self.train.holds_tokens != self.test.holds_tokens:
            raise DataError("train and test must both have a target a token, or neither.")
        if not isinstance(self.num_classes, int) or not 1 <= self.num_classes < 2**31:
            raise DataError(f"num_classes must be a number of classes, found {self.num_classes!r}.")
        _check_labels("train", self.train.targets, self.num_classes)
        _check_labels("test", self.test.targets, self.num_classes)
        if self.train.holds_tokens:
            _check_labels("train", self.train.inputs, self.num_classes)
            _check_labels("test", self.test.inputs, self.num_classes)
        self._check_normalisation()

    def _check_normalisation(self) -> None:
        has_bytes = self.train.inputs.dtype == torch.uint8 and not self.train.holds_tokens
        needed = self.input_shape[0] if has_bytes else None
        for name, values in (("mean", self.mean), ("std", self.std)):
            found = None if values is None else len(values)
            if found != needed:
                raise DataError(
                    f"{name} must hold {needed or 'no'} numbers for samples that are "
                    f"{_describe(self.train.inputs)}, found {values}."
                )
            if not all(map(_is_finite, values or ())):
                raise DataError(f"{name} must hold finite numbers, found {values!r:.200}.")
        if self.std is not None and min(self.std) <= 0:
            raise DataError(f"std must be above 0 for every channel, found {self.std}.")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One sample's shape, without N."""
        return self.train.input_shape

    @classmethod
    def from_arrays(
        cls,
        *,
        train: tuple[ArrayLike, ArrayLike],
        test: tuple[ArrayLike, ArrayLike],
        num_classes: int | None = None,
    ) -> Self:
        """Make a data set of your own arrays: ``(inputs, targets)`` for each part.

        Images in uint8 are scaled to mean 0 and deviation 1 a channel when they are used; floating
        point goes to the network as it is. Whole numbers (N, T) with targets (N, T) are tokens,
        each with the one that follows it. Arrays that have the right type already are
        not copied, so leave them unchanged while they are in use.

        Args:
            train: Inputs (N, C, H, W) in uint8 or (N, ...) in any floating point, and class
                indices (N) in any type of whole number.
            test: The same, of samples to test with.
            num_classes: Classes to tell apart; without it, one more than the largest label.

        Raises:
            DataError: The arrays do not fit together, or a part is no pair of them.
        """
        train_split, test_split = _as_split("train", train), _as_split("test", test)
        warn_of_order(train_split.inputs)
        if num_classes is None:
            num_classes = 1 + max(int(part.targets.max()) for part in (train_split, test_split))
        with suppress(TypeError):  # What numpy and torch count is no int.
            num_classes = operator.index(num_classes)
        mean = std = None
        if train_split.inputs.dtype == torch.uint8 and not train_split.holds_tokens:
            mean, std = channel_statistics(train_split.inputs)
        return cls(train_split, test_split, num_classes, mean, std)

    @classmethod
    def from_torch(cls, *, train: MapStyle, test: MapStyle, num_classes: int | None = None) -> Self:
        """Make a data set of torch's map-style ones, which are read into memory: every sample
        once, the first 32 twice.

        Best are images in bytes, as Pillow's RGB and grey ones become (C, H, W); tensors and numpy
        arrays are taken as ``from_arrays`` takes rows of them. No transform may be random.

        Args:
            train: Gives ``(input, label)`` by index, and has a length; a label is a whole number.
            test: The same, of samples to test with.
            num_classes: Classes to tell apart; without it, one more than the largest label.

        Raises:
            DataError: One is no such data set or changes from reading to reading, or the samples
                do not fit together; the message names the sample.
        """
        return cls.from_arrays(
            train=read_samples("train", train),
            test=read_samples("test", test),
            num_classes=num_classes,
        )

    def equals(self, other: Dataset) -> bool:
        """Whether another data set has the same samples, labels, classes and normalisation."""
        facts = [(d.num_classes, d.mean, d.std) for d in (self, other)]
        pairs = [
            (getattr(mine, field), getattr(theirs, field))
            for mine, theirs in ((self.train, other.train), (self.test, other.test))
            for field in _FIELDS
        ]
        return facts[0] == facts[1] and all(_equal(a, b) for a, b in pairs)

    def save(self, path: Path) -> None:
        """Write everything to one safetensors file, whole or not at all, which ``load`` reads.

        Raises:
            OSError: The disk is full or cannot be written.
        """
        facts = {"num_classes": self.num_classes, "mean": self.mean, "std": self.std}
        arrays = {
            f"{name}.{field}": tensor.contiguous().numpy()
            for name, split in (("train", self.train), ("test", self.test))
            for field in _FIELDS
            if (tensor := getattr(split, field)) is not None
        }
        # As arrays, since safetensors refuses tensors that share memory, and parts may overlap.
        content = safetensors.numpy.save(arrays, metadata={"ppll": json.dumps(facts)})
        write_whole(path, content)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what ``save`` has written.

        Raises:
            DataError: The file is missing, damaged, or of another kind.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                facts, names = json.loads(file.metadata()["ppll"]), set(file.keys())
                train, test = (
                    Split(
                        file.get_tensor(f"{part}.inputs"),
                        file.get_tensor(f"{part}.targets"),
                        file.get_tensor(groups) if (groups := f"{part}.groups") in names else None,
                    )
                    for part in ("train", "test")
                )
            mean, std = (None if facts[k] is None else tuple(facts[k]) for k in ("mean", "std"))
            return cls(train, test, facts["num_classes"], mean, std)
        # Beside safetensors' own errors come torch's about types and shapes that it does not know.
        except (
            OSError,
            safetensors.SafetensorError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise DataError(f"cannot read the data set {path}: {error!s:.200}.") from None


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    except OverflowError:
        return False


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _check_tokens(inputs: Tensor, targets: Tensor) -> None:
    if inputs.dtype not in _TOKENS or inputs.shape != targets.shape or inputs.numel() == 0:
        raise DataError(
            f"rows of tokens must be (N, T) in uint8, int32 or int64, with targets of the same "
            f"shape, found {_describe(inputs)} and targets {_describe(targets)}."
        )
    if targets.dtype != inputs.dtype:
        raise DataError(f"targets must be {inputs.dtype} like the tokens, found {targets.dtype}.")


def _check_inputs(inputs: Tensor) -> None:
    fits = inputs.dim() == 4 if inputs.dtype == torch.uint8 else inputs.dim() >= 1
    if inputs.dtype not in (torch.uint8, torch.float32) or not fits:
        raise DataError(f"inputs must be {_SHAPES}, found {_describe(inputs)}.")
    if inputs.numel() == 0:
        raise DataError(f"inputs of shape {tuple(inputs.shape)} are empty: give samples.")
    if inputs.requires_grad:
        raise DataError("inputs require a gradient, but data is not learned: give plain values.")


def _check_labels(part: str, targets: Tensor, num_classes: int) -> None:
    if int(targets.min()) < 0 or int(targets.max()) >= num_classes:
        wide = targets.long()  # a byte cannot be compared with 256
        bad = torch.nonzero((wide < 0) | (wide >= num_classes))
        index = int(bad[0, 0])
        raise DataError(
            f"label {int(targets[tuple(bad[0])])} of {part} sample {index} is not a class: "
            f"{num_classes} classes have the labels 0 to {num_classes - 1}."
        )


def _as_split(part: str, pair: object) -> Split:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        found = type(pair).__name__
        raise DataError(f"{part} must be a pair of arrays (inputs, targets), found {found}.")
    inputs, targets = pair
    try:
        samples, labels = as_tensor(inputs), as_tensor(targets)
        if samples.is_floating_point():
            samples = samples.to(torch.float32)
            check_finite(samples)
        if labels.dtype in _WHOLE_NUMBERS and labels.dim() == 1:
            labels = labels.to(torch.int64)
        return Split(samples, labels)
    except DataError as error:
        raise DataError(f"{part}: {error}") from None
