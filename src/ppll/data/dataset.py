"""Samples and their labels, checked when they are put together."""

from __future__ import annotations

import json
import logging
import math
import numbers
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from ppll.data.arrays import ArrayLike, as_tensor, channel_statistics, check_finite
from ppll.data.labels import check_count, check_labels, check_vocabulary, counted_from
from ppll.data.split import Split, described
from ppll.data.torch_dataset import MapStyle, read_samples
from ppll.durable import write_whole
from ppll.errors import DataError

__all__ = ["Dataset"]

_log = logging.getLogger(__name__)

_FIELDS = ("inputs", "targets", "groups")
_WHOLE_NUMBERS = (
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
)


@dataclass(frozen=True, eq=False)
class Dataset:
    """What can be trained on and what is tested with.

    Attributes:
        train: Samples to learn from, and to keep a validation part of.
        test: Samples that are only ever evaluated.
        num_classes: Classes to tell apart; or how many values of a sample are to be predicted (D).
        mean: Of every channel of uint8 images, 0 to 1; none for floating point, which the network
            gets as it is.
        std: Standard deviation of every channel, like ``mean``.
        num_tokens: Different tokens there are, where samples are rows of tokens; as many as
            classes, where the tokens that follow are predicted.

    Raises:
        DataError: A label is not a class, a token not one of these, or the parts do not fit
            together.
    """

    train: Split
    test: Split
    num_classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    num_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.num_tokens is None and self.train.predicts_tokens:
            object.__setattr__(self, "num_tokens", self.num_classes)
        train, test = self.train.inputs, self.test.inputs
        if (train.shape[1:], train.dtype) != (test.shape[1:], test.dtype):
            raise DataError(
                f"train samples are {described(train)} but test samples {described(test)}: "
                "give both the same shape and type."
            )
        if self.train.predicts_tokens != self.test.predicts_tokens:
            raise DataError("train and test must both have a target a token, or neither.")
        if self.train.predicts_values != self.test.predicts_values:
            raise DataError(
                f"train and test must both have values to predict, or both classes, found targets "
                f"{described(self.train.targets)} and {described(self.test.targets)}: give both in "
                f"floating point, or both in whole numbers."
            )
        check_count("num_classes", "classes", self.num_classes)
        check_labels("train", self.train.targets, self.num_classes)
        check_labels("test", self.test.targets, self.num_classes)
        self._check_tokens()
        self._check_normalisation()

    def _check_tokens(self) -> None:
        if not self.train.holds_tokens:
            if self.num_tokens is not None:
                raise DataError(
                    f"num_tokens = {self.num_tokens!r}, but samples are "
                    f"{described(self.train.inputs)} and no rows of tokens: leave it out."
                )
            return
        if self.train.predicts_tokens and self.num_tokens != self.num_classes:
            raise DataError(
                f"num_tokens = {self.num_tokens!r}, but targets are tokens, too, and num_classes "
                f"= {self.num_classes} of them: give both the same number, or num_classes alone."
            )
        num_tokens = check_count("num_tokens", "different tokens", self.num_tokens)
        check_vocabulary("train", self.train.inputs, num_tokens)
        check_vocabulary("test", self.test.inputs, num_tokens)

    def _check_normalisation(self) -> None:
        has_bytes = self.train.inputs.dtype == torch.uint8 and not self.train.holds_tokens
        needed = self.input_shape[0] if has_bytes else None
        for name, values in (("mean", self.mean), ("std", self.std)):
            found = None if values is None else len(values)
            if found != needed:
                raise DataError(
                    f"{name} must hold {needed or 'no'} numbers for samples that are "
                    f"{described(self.train.inputs)}, found {values}."
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
        num_tokens: int | None = None,
    ) -> Self:
        """Make a data set of your own arrays: ``(inputs, targets)`` for each part.

        Images in uint8 are scaled to mean 0 and deviation 1 a channel when they are used; floating
        point goes to the network as it is. Whole numbers (N, T) are rows of tokens, with one class
        a row, or with targets (N, T): of each token the one that follows it. Targets in floating
        point are values to predict, which need a loss of their own (``loss.name``). Arrays that
        have the right type already are not copied, so leave them unchanged while they are in use.

        Args:
            train: Inputs (N, C, H, W) in uint8, (N, T) in uint8, int32 or int64, or (N, ...) in
                any floating point; and class indices (N) in any type of whole number, or values
                (N) or (N, D) in any floating point.
            test: The same, of samples to test with.
            num_classes: Classes to tell apart; without it, one more than the largest label. Of
                values there is no need for it.
            num_tokens: Different tokens there are; without it, one more than the largest.

        Raises:
            DataError: The arrays do not fit together, or a part is no pair of them.
        """
        train_split, test_split = _as_split("train", train), _as_split("test", test)
        _warn_of_order(train_split.inputs)
        splits = (train_split, test_split)
        follow = [part.inputs for part in splits if part.predicts_tokens]
        if train_split.predicts_values and num_classes is None:
            num_classes = train_split.targets.shape[1]
        num_classes = counted_from(num_classes, [*(part.targets for part in splits), *follow])
        if num_tokens is not None or (splits[0].holds_tokens and not splits[0].predicts_tokens):
            num_tokens = counted_from(num_tokens, [part.inputs for part in splits])
        mean = std = None
        if train_split.inputs.dtype == torch.uint8 and not train_split.holds_tokens:
            mean, std = channel_statistics(train_split.inputs)
        return cls(train_split, test_split, num_classes, mean, std, num_tokens)

    @classmethod
    def from_torch(
        cls,
        *,
        train: MapStyle,
        test: MapStyle,
        num_classes: int | None = None,
        num_tokens: int | None = None,
    ) -> Self:
        """Make a data set of torch's map-style ones, which are read into memory: every sample
        once, the first 32 twice.

        Best are images in bytes, as Pillow's RGB and grey ones become (C, H, W); tensors and numpy
        arrays are taken as ``from_arrays`` takes rows of them. No transform may be random.

        Args:
            train: Gives ``(input, label)`` by index, and has a length; a label is a whole number,
                or one or several (D) in floating point.
            test: The same, of samples to test with.
            num_classes: Classes to tell apart; without it, one more than the largest label.
            num_tokens: Different tokens there are; without it, one more than the largest.

        Raises:
            DataError: One is no such data set or changes from reading to reading, or the samples
                do not fit together; the message names the sample.
        """
        return cls.from_arrays(
            train=read_samples("train", train),
            test=read_samples("test", test),
            num_classes=num_classes,
            num_tokens=num_tokens,
        )

    def equals(self, other: Dataset) -> bool:
        """Whether another data set has the same samples, labels, classes and normalisation."""
        facts = [(d.num_classes, d.mean, d.std, d.num_tokens) for d in (self, other)]
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
        names = ("num_classes", "mean", "std", "num_tokens")
        facts = {name: getattr(self, name) for name in names}
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
            return cls(train, test, facts["num_classes"], mean, std, facts.get("num_tokens"))
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


def _warn_of_order(inputs: Tensor) -> None:
    """Images with their channels last would be trained on as narrow ones of many channels."""
    if inputs.dim() == 4 and inputs.shape[3] in (1, 3) and inputs.shape[1] > 4:
        _log.warning(
            "train samples are %s, as if channels were last, but images are (N, C, H, W): unless "
            "they have %d channels, give inputs.transpose(0, 3, 1, 2) of NumPy, or "
            "inputs.permute(0, 3, 1, 2) of torch",
            described(inputs),
            inputs.shape[1],
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
        elif labels.is_floating_point():
            labels = (labels[:, None] if labels.dim() == 1 else labels).to(torch.float32)
            check_finite(labels, "the target of sample")
        return Split(samples, labels)
    except DataError as error:
        raise DataError(f"{part}: {error}") from None
