"""Batches of a prepared data set, each a function of the seed, the epoch and its place."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppll.data.augmentation import augment, normalise
from ppll.data.augmentation.mixing import mix, own_weights
from ppll.data.dataset import Split
from ppll.data.preparation import PreparedData
from ppll.message import FEATURES, MIX, OTHER_TARGETS, TARGETS, canonical
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
    (N) int64, and ``image`` (N, ...) where it is asked for. Training batches of samples that are
    mixed of two have ``other_targets`` (N) int64 and ``mix`` (N) float32 as well.

    Args:
        data: What the batches are made of.
        seed: The run's seed.
        eval_batch_size: Samples of an evaluation batch; as the recipe says without.
        fields: Fields of a message that the method needs; of these, ``image`` is made here.
        replica: Who asks: a replica gets its shard of every training batch, and only the first one
            evaluates.
        num_replicas: Of how many.
    """

    def __init__(
        self,
        data: PreparedData,
        *,
        seed: int,
        eval_batch_size: int | None = None,
        fields: Collection[str] = (),
        replica: int = 0,
        num_replicas: int = 1,
    ) -> None:
        self.data = data
        config = data.config
        self._eval_batch_size = eval_batch_size or config.eval_batch_size or config.batch_size
        self._seed = seed
        self._with_image = IMAGE in fields
        self._replica = replica
        self._num_replicas = num_replicas
        self._order: tuple[int, Samples] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Training batches of an epoch."""
        return self.data.steps_per_epoch

    @property
    def splits(self) -> tuple[str, ...]:
        """Samples that can be evaluated: ``"test"``, and ``"validation"`` where it is kept."""
        return self.data.splits

    def num_samples(self, index: int) -> int:
        """Samples of training batch number ``index`` of an epoch, in all replicas together."""
        size = self.data.config.batch_size
        return min(size, len(self.data.train_samples) - index * size)

    def train_batch(self, epoch: int, index: int) -> dict[str, Tensor]:
        """Training batch number ``index``, from 0, of an epoch, augmented; a replica's shard of it.

        Raises:
            IndexError: An epoch has fewer batches.
        """
        samples, others = self._samples(epoch, index)
        if not self.data.config.mixes:
            inputs = self._augmented(samples, epoch)
            return {**self._input_fields(inputs), **self._target_fields(samples)}
        weights = self._own_weights(samples, epoch)
        needed, rows = np.unique(np.concatenate([samples, others]), return_inverse=True)
        images = self._augmented(needed, epoch).index_select(0, torch.from_numpy(rows))
        mixed = mix(images[: len(samples)], images[len(samples) :], weights)
        return {**self._input_fields(mixed), **self._target_fields(samples, others, weights)}

    def train_targets(self, epoch: int, index: int) -> dict[str, Tensor]:
        """The fields of ``train_batch`` that say what is to be predicted, without the work of
        making its inputs."""
        samples, others = self._samples(epoch, index)
        if not self.data.config.mixes:
            return self._target_fields(samples)
        return self._target_fields(samples, others, self._own_weights(samples, epoch))

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """Every batch of ``"validation"`` or ``"test"``, in order and unchanged; none for another
        replica than the first."""
        if self._replica:
            return
        data = self.data
        part, samples = {
            "validation": (data.dataset.train, data.validation_samples),
            "test": (data.dataset.test, np.arange(len(data.dataset.test))),
        }[split]
        size = self._eval_batch_size
        for start in range(0, len(samples), size):
            inputs, targets = _gather(part, samples[start : start + size])
            yield {**self._input_fields(inputs), TARGETS: canonical(targets)}

    def _samples(self, epoch: int, index: int) -> tuple[Samples, Samples]:
        """The samples of a training batch, and the neighbour of each in the order of the epoch.

        Neighbours are the first and second sample, the third and fourth and so on; the last of an
        odd number is its own.
        """
        if not 0 <= index < self.steps_per_epoch:
            raise IndexError(f"batch {index} of {self.steps_per_epoch} in an epoch")
        order = self._epoch_samples(epoch)
        start, num = index * self.data.config.batch_size, self.num_samples(index)
        first, last = (num * r // self._num_replicas for r in (self._replica, self._replica + 1))
        places = np.arange(start + first, start + last)
        return order[places], order[np.minimum(places ^ 1, len(order) - 1)]

    def _epoch_samples(self, epoch: int) -> Samples:
        if self._order is None or self._order[0] != epoch:
            samples = epoch_order(self.data.train_samples, seed=self._seed, epoch=epoch)
            self._order = epoch, samples
        return self._order[1]

    def _augmented(self, samples: Samples, epoch: int) -> Tensor:
        """Inputs of training samples, each changed by itself."""
        config, dataset = self.data.config, self.data.dataset
        inputs, _ = _gather(dataset.train, samples)
        if not dataset.train.holds_images:
            return inputs
        return augment(
            inputs,
            samples,
            seed=self._seed,
            epoch=epoch,
            crop=config.crop,
            flip=config.flip,
            randaugment=config.randaugment,
            randaugment_ops=config.randaugment_ops,
            cutout=config.cutout,
            fill=None if dataset.mean is None else [round(255 * mean) for mean in dataset.mean],
        )

    def _own_weights(self, samples: Samples, epoch: int) -> Tensor:
        config = self.data.config
        _, height, width = self.data.dataset.input_shape
        return own_weights(
            samples,
            seed=self._seed,
            epoch=epoch,
            height=height,
            width=width,
            mixup=config.mixup,
            cutmix=config.cutmix,
        )

    def _input_fields(self, inputs: Tensor) -> dict[str, Tensor]:
        mean, std = self.data.dataset.mean, self.data.dataset.std
        features = inputs
        if mean is not None and std is not None:
            features = normalise(inputs, mean, std)
        fields = {FEATURES: canonical(features)}
        if self._with_image:
            fields[IMAGE] = canonical(inputs)
        return fields

    def _target_fields(
        self, samples: Samples, others: Samples | None = None, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        targets = self.data.dataset.train.targets
        fields = {TARGETS: targets.index_select(0, torch.from_numpy(samples))}
        if others is not None and weights is not None:
            fields[OTHER_TARGETS] = targets.index_select(0, torch.from_numpy(others))
            fields[MIX] = weights.mean((1, 2), dtype=torch.float64).float()
        return {name: canonical(tensor) for name, tensor in fields.items()}


def _gather(split: Split, samples: Samples) -> tuple[Tensor, Tensor]:
    """Copies of some samples, in row-major order whatever the data set's own."""
    rows = torch.from_numpy(samples)
    inputs = split.inputs.index_select(0, rows).contiguous()
    return inputs, split.targets.index_select(0, rows)
