"""A data set as a recipe wants it: limited, with a validation part, and checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from ppll.data.dataset import Dataset
from ppll.data.split import Split
from ppll.data_facts import DataFacts
from ppll.errors import DataError
from ppll.randomness import fold, fold_array
from ppll.sections import DataConfig

__all__ = ["PreparedData", "facts_of", "hold_out", "prepare"]

Samples = npt.NDArray[np.int64]

_OF_IMAGES: Final = ("crop", "flip", "randaugment", "cutout", "mixup", "cutmix")
"""Keys that ask for something that only images have."""


@dataclass(frozen=True, eq=False)
class PreparedData:
    """A data set and which of its training samples are used for what.

    A sample keeps its index in ``dataset.train`` for good, so its place in an epoch and its crops
    are the same whether or not other samples are kept for validation.

    Attributes:
        dataset: The data set, with as many test samples as are tested with.
        config: What the recipe says about it.
        train_samples: Indices in ``dataset.train`` of what is learned from, ascending.
        validation_samples: Indices in ``dataset.train`` of what is kept back, ascending.
    """

    dataset: Dataset
    config: DataConfig
    train_samples: Samples
    validation_samples: Samples

    @property
    def steps_per_epoch(self) -> int:
        """Training batches of an epoch."""
        full, left = divmod(len(self.train_samples), self.config.batch_size)
        return full if self.config.drop_last or left == 0 else full + 1

    @property
    def splits(self) -> tuple[str, ...]:
        """Samples that can be evaluated: ``"test"``, and ``"validation"`` where it is kept."""
        return ("validation", "test") if len(self.validation_samples) else ("test",)


def prepare(dataset: Dataset, config: DataConfig) -> PreparedData:
    """Limit the samples of both parts, then keep some training samples back for validation.

    Raises:
        DataError: Too few samples are left, a limit leaves whole classes out, or images are to be
            changed that are none or too small.
    """
    _check_augmentation(dataset, config)
    _check_limit("train", dataset.train, config.train_limit)
    _check_limit("test", dataset.test, config.test_limit)
    dataset = replace(dataset, test=_first(dataset.test, config.test_limit))
    num_samples = min(len(dataset.train), config.train_limit or len(dataset.train))
    train, validation = _parted(dataset.train, num_samples, _num_validation(config, num_samples))
    if len(train) == 0:
        raise DataError(
            f"data.validation = {config.validation} leaves nothing to learn from, since samples of "
            f"one file stay together: choose less."
        )
    if config.batch_size > len(train):
        raise DataError(
            f"data.batch_size = {config.batch_size}, but there are only {len(train)} training "
            f"samples: choose 1 to {len(train)}."
        )
    return PreparedData(dataset, config, train, validation)


def facts_of(data: PreparedData) -> DataFacts:
    """What everybody must know of the data."""
    dataset = data.dataset
    return DataFacts(
        dataset.input_shape,
        dataset.num_classes,
        data.steps_per_epoch,
        dataset.mean,
        dataset.std,
        num_tokens=dataset.num_tokens,
        predicts_tokens=dataset.train.predicts_tokens,
        predicts_values=dataset.train.predicts_values,
        num_test=len(dataset.test),
        num_validation=len(data.validation_samples),
    )


def hold_out(num_samples: int, num_held_out: int, purpose: str) -> tuple[Samples, Samples]:
    """Part ``num_samples`` samples in those that are kept and those that are held out.

    Which are held out is a hash of their index and the purpose, the same for every seed.

    Returns:
        Indices of both parts, ascending.
    """
    samples = np.arange(num_samples, dtype=np.int64)
    order = np.argsort(fold_array(fold("hold out", purpose), samples), kind="stable")
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def _first(split: Split, limit: int | None) -> Split:
    """The first samples of a split, as views."""
    groups = None if split.groups is None else split.groups[:limit]
    return Split(split.inputs[:limit], split.targets[:limit], groups)


def _check_limit(part: str, split: Split, limit: int | None) -> None:
    """Refuse the first samples of a split whose samples lie class by class."""
    targets = split.targets
    if limit is None or limit >= len(split) or split.predicts_tokens or split.predicts_values:
        return
    found, there = (len(np.unique(labels)) for labels in (targets[:limit], targets))
    by_class = int(targets.diff().count_nonzero()) == there - 1  # in whatever order of classes
    if by_class and found < min(there, limit):
        raise DataError(
            f"data.{part}_limit = {limit}: the {part} samples lie class by class, "
            f"so the first {limit} are of {found} of {there} classes: leave it out."
        )


def _parted(split: Split, num_samples: int, num_held_out: int) -> tuple[Samples, Samples]:
    """The first samples of a split in those to learn from and those kept for validation.

    Groups are kept whole, in the order of a hash, until there are enough samples.
    """
    if split.groups is None:
        return hold_out(num_samples, num_held_out, "validation")
    groups = split.groups[:num_samples].numpy()
    names, sizes = np.unique(groups, return_counts=True)
    order = np.argsort(fold_array(fold("hold out", "validation"), names), kind="stable")
    before = np.cumsum(sizes[order]) - sizes[order]
    is_held_out = np.isin(groups, names[order[before < num_held_out]])
    samples = np.arange(num_samples, dtype=np.int64)
    return samples[~is_held_out], samples[is_held_out]


def _num_validation(config: DataConfig, num_samples: int) -> int:
    wanted = config.validation
    number = wanted if isinstance(wanted, int) else round(wanted * num_samples)
    if number >= num_samples:
        raise DataError(
            f"data.validation = {wanted} leaves none of {num_samples} training samples to learn "
            f"from: choose at most {num_samples - 1}."
        )
    if wanted and number == 0:
        raise DataError(
            f"data.validation = {wanted} of {num_samples} training samples is less than one: "
            "choose a larger share, a number of samples, or 0."
        )
    return number


def _check_augmentation(dataset: Dataset, config: DataConfig) -> None:
    asked_for = [key for key in _OF_IMAGES if getattr(config, key)]
    if not asked_for:
        return
    if not dataset.train.holds_images:
        raise DataError(
            f"data.{asked_for[0]} needs images (channels, height, width), but samples have the "
            f"shape {dataset.input_shape}: leave it out."
        )
    if config.randaugment and dataset.train.inputs.dtype != torch.uint8:
        raise DataError(
            f"data.randaugment needs images in bytes, but these are {dataset.train.inputs.dtype}: "
            f"leave it out, or give uint8 images."
        )
    smaller_side = min(dataset.input_shape[1:])
    for key, what in (("crop", "cut a whole image away"), ("cutout", "paint a whole image over")):
        if getattr(config, key) >= smaller_side:
            raise DataError(
                f"data.{key} = {getattr(config, key)} could {what}, whose smaller side is "
                f"{smaller_side}: choose 0 to {smaller_side - 1}."
            )
