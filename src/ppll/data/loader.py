"""Batches of a prepared data set, each a function of the seed, the epoch and its place."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppll.data.augment import augment, normalise
from ppll.data.dataset import Split
from ppll.data.preparation import PreparedData
from ppll.message import FEATURES, TARGETS, canonical
from ppll.randomness import fold, fold_array

__all__ = ["IMAGE", "Loader", "epoch_order"]

Samples = npt.NDArray[np.int64]

IMAGE: Final = "image"
"""Field with the inputs as they were before normalisation."""


def epoch_order(samples: Samples, *, seed: int, epoch: int) -> Samples:
    """The samples in the order of an epoch: sorted by a hash of seed, epoch and index.

    Leaving some samples out does not change the order of the others.

    Args:
        samples: Indices (N).
        seed: The run's seed.
        epoch: Epoch, from 0.
    """
    hashes = fold_array(fold(seed, "order", epoch), samples)
    return samples[np.argsort(hashes, kind="stable")]


class Loader:
    """Makes any batch of a run on demand; asking twice gives the same values.

    A batch is a dictionary of dense, aligned tensors: ``features`` (N, ...) float32, ``targets``
    (N) int64, and ``image`` (N, ...) where it is asked for.

    Args:
        data: What the batches are made of.
        seed: The run's seed.
        eval_batch_size: Samples of an evaluation batch; as the recipe says without.
        fields: Fields of a message that the method needs; of these, ``image`` is made here.
    """

    def __init__(
        self,
        data: PreparedData,
        *,
        seed: int,
        eval_batch_size: int | None = None,
        fields: Collection[str] = (),
    ) -> None:
        self.data = data
        config = data.config
        self._eval_batch_size = eval_batch_size or config.eval_batch_size or config.batch_size
        self._seed = seed
        self._with_image = IMAGE in fields
        self._order: tuple[int, Samples] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Training batches of an epoch."""
        return self.data.steps_per_epoch

    @property
    def splits(self) -> tuple[str, ...]:
        """Samples that can be evaluated: ``"test"``, and ``"validation"`` where it is kept."""
        return self.data.splits

    def train_batch(self, epoch: int, index: int) -> dict[str, Tensor]:
        """Training batch number ``index``, from 0, of an epoch, cropped and flipped.

        Raises:
            IndexError: An epoch has fewer batches.
        """
        if not 0 <= index < self.steps_per_epoch:
            raise IndexError(f"batch {index} of {self.steps_per_epoch} in an epoch")
        config, train = self.data.config, self.data.dataset.train
        start = index * config.batch_size
        samples = self._epoch_samples(epoch)[start : start + config.batch_size]
        inputs, targets = _gather(train, samples)
        if train.holds_images:
            inputs = augment(
                inputs, samples, seed=self._seed, epoch=epoch, crop=config.crop, flip=config.flip
            )
        return self._fields(inputs, targets)

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """Every batch of ``"validation"`` or ``"test"``, in order and unchanged."""
        data = self.data
        part, samples = {
            "validation": (data.dataset.train, data.validation_samples),
            "test": (data.dataset.test, np.arange(len(data.dataset.test))),
        }[split]
        size = self._eval_batch_size
        for start in range(0, len(samples), size):
            yield self._fields(*_gather(part, samples[start : start + size]))

    def _epoch_samples(self, epoch: int) -> Samples:
        if self._order is None or self._order[0] != epoch:
            samples = epoch_order(self.data.train_samples, seed=self._seed, epoch=epoch)
            self._order = epoch, samples
        return self._order[1]

    def _fields(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        mean, std = self.data.dataset.mean, self.data.dataset.std
        features = inputs
        if mean is not None and std is not None:
            features = normalise(inputs, mean, std)
        fields = {FEATURES: canonical(features), TARGETS: canonical(targets)}
        if self._with_image:
            fields[IMAGE] = canonical(inputs)
        return fields


def _gather(split: Split, samples: Samples) -> tuple[Tensor, Tensor]:
    """Copies of some samples, in row-major order whatever the data set's own."""
    rows = torch.from_numpy(samples)
    inputs = split.inputs.index_select(0, rows).contiguous()
    return inputs, split.targets.index_select(0, rows)
