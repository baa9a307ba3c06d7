"""Batches of a prepared data set, each a function of the seed, the epoch and its place."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

import numpy as np
import torch
from torch import Tensor

from ppll.data.augmentation import Augmentation, Normalisation
from ppll.data.augmentation.draws import Draws, Numbers, Samples
from ppll.data.augmentation.mixing import draw, mix, neighbours, own_weights
from ppll.data.preparation import PreparedData
from ppll.data.split import Split
from ppll.message import FEATURES, MIX, OTHER_TARGETS, TARGETS, canonical
from ppll.randomness import fold, fold_array
from ppll.uploads import upload

__all__ = ["IMAGE", "Loader", "epoch_order"]

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
    (N) int64, or values (N, D) float32, and ``image`` (N, ...) where it is asked for. Training
    batches of samples that are mixed of two have ``other_targets`` (N) int64 and ``mix`` (N)
    float32 as well. Where samples are rows of tokens, ``features`` are (N, T) int64, and so are
    ``targets`` where each token has one.

    The data set lies on the host, or where ``move_to`` brings it. Batches are made where it lies,
    of the same bits, and the host waits for none of it.

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
        self._augmentation = Augmentation(
            crop=config.crop,
            flip=config.flip,
            randaugment=config.randaugment,
            randaugment_ops=config.randaugment_ops,
            cutout=config.cutout,
        )
        self.move_to(torch.device("cpu"))

    def move_to(self, device: torch.device) -> None:
        """Copy the data set to a device, where batches are made from now on."""
        self.device = device
        dataset = self.data.dataset
        self._train, self._test = (
            Split(split.inputs.to(device), split.targets.to(device))
            for split in (dataset.train, dataset.test)
        )
        self._normalise, self._fill = None, None
        if dataset.mean is not None and dataset.std is not None:
            self._normalise = Normalisation(dataset.mean, dataset.std, device)
            fill = [round(255 * mean) for mean in dataset.mean]
            self._fill = torch.tensor(fill, dtype=torch.uint8, device=device)
        self._drawn: tuple[int, Draws] | None = None

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
        draws, own = self._draws(epoch, index)
        inputs = self._augmented(draws, epoch)
        if self.data.config.mixes:
            height, width = inputs.shape[-2:]
            weights = own_weights(draws.numbers, height=height, width=width)
            inputs = mix(inputs, neighbours(inputs), weights)
        return {**self._input_fields(inputs[own]), **self._target_fields(draws, own)}

    def train_targets(self, epoch: int, index: int) -> dict[str, Tensor]:
        """The fields of ``train_batch`` that say what is to be predicted, without the work of
        making its inputs."""
        return self._target_fields(*self._draws(epoch, index))

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """Every batch of ``"validation"`` or ``"test"``, in order and unchanged; none for another
        replica than the first."""
        if self._replica:
            return
        part, samples = {
            "validation": (self._train, self.data.validation_samples),
            "test": (self._test, np.arange(len(self._test))),
        }[split]
        rows = upload(torch.from_numpy(samples), self.device)
        for start in range(0, len(rows), self._eval_batch_size):
            chosen = rows[start : start + self._eval_batch_size]
            targets = canonical(_targets(part, chosen))
            yield {**self._input_fields(_gather(part, chosen)), TARGETS: targets}

    def _draws(self, epoch: int, index: int) -> tuple[Draws, slice]:
        """What was drawn for the samples that a training batch is made of, and where its own are
        among them.

        Neighbours in the order of the epoch are mixed: the first and second sample, the third and
        fourth and so on. So a batch may need one more sample on each side.
        """
        if not 0 <= index < self.steps_per_epoch:
            raise IndexError(f"batch {index} of {self.steps_per_epoch} in an epoch")
        draws, start = self._epoch_draws(epoch), index * self.data.config.batch_size
        num, shards = self.num_samples(index), (self._replica, self._replica + 1)
        begin, end = (start + num * shard // self._num_replicas for shard in shards)
        first, last = begin, end
        if self.data.config.mixes:
            first, last = begin - begin % 2, end + end % 2
        return draws.part(first, last), slice(begin - first, end - first)

    def _epoch_draws(self, epoch: int) -> Draws:
        """What was drawn for all training samples, in the order of the epoch."""
        if self._drawn is None or self._drawn[0] != epoch:
            order = epoch_order(self.data.train_samples, seed=self._seed, epoch=epoch)
            self._drawn = epoch, Draws.on(self.device, order, self._numbers(order, epoch))
        return self._drawn[1]

    def _numbers(self, samples: Samples, epoch: int) -> Numbers:
        if not self._train.holds_images:
            return {}
        config = self.data.config
        _, height, width = self.data.dataset.input_shape
        place = {"seed": self._seed, "epoch": epoch, "height": height, "width": width}
        numbers = dict(self._augmentation.draw(samples, **place))
        if config.mixes:
            numbers |= draw(samples, **place, mixup=config.mixup, cutmix=config.cutmix)
        return numbers

    def _augmented(self, draws: Draws, epoch: int) -> Tensor:
        """Inputs of training samples, each changed by itself."""
        inputs = _gather(self._train, draws.rows)
        if not self._train.holds_images:
            return inputs
        return self._augmentation.apply(
            inputs, draws, seed=self._seed, epoch=epoch, fill=self._fill
        )

    def _input_fields(self, inputs: Tensor) -> dict[str, Tensor]:
        features = inputs if self._normalise is None else self._normalise(inputs)
        fields = {FEATURES: canonical(features)}
        if self._with_image:
            fields[IMAGE] = canonical(inputs)
        return fields

    def _target_fields(self, draws: Draws, own: slice) -> dict[str, Tensor]:
        targets = _targets(self._train, draws.rows)
        fields = {TARGETS: targets[own]}
        if self.data.config.mixes:
            fields[OTHER_TARGETS] = neighbours(targets)[own]
            fields[MIX] = draws.numbers["mix"][own]
        return {name: canonical(tensor) for name, tensor in fields.items()}


def _gather(split: Split, rows: Tensor) -> Tensor:
    """Copies of some samples' inputs, in row-major order whatever the data set's own."""
    inputs = split.inputs.index_select(0, rows).contiguous()
    return inputs.long() if split.holds_tokens else inputs


def _targets(split: Split, rows: Tensor) -> Tensor:
    """What is to be predicted of some samples."""
    targets = split.targets.index_select(0, rows)
    return targets if split.predicts_values else targets.long()
