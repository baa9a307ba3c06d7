"""The recipe's batches, for a rank that needs only a part of them.

All ranks see the batches that PPLL trains on, in the same order. None loads what it does not use:
a replica makes its own slice of a batch, a rank that computes the loss alone reads targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from ppll.baselines.systems import Layout
from ppll.baselines.work import Batch
from ppll.config import Recipe
from ppll.data import Loader, PreparedData, load_dataset, prepare
from ppll.data.loader import epoch_order
from ppll.errors import ChannelClosed, RecipeError
from ppll.message import FEATURES, TARGETS, Kind, Message
from ppll.prefetch import Prefetcher

__all__ = ["Feed", "check_batches"]


def check_batches(recipe: Recipe, data: PreparedData, layout: Layout) -> None:
    """Refuse batches that a rival cannot slice.

    Raises:
        RecipeError: A batch does not divide, or not all batches are of one size.
    """
    size, num_slices = recipe.data.batch_size, layout.num_slices
    if size % num_slices:
        what = "ranks" if layout.system.kind == "replicas" else "micro-batches"
        near = max(num_slices, size - size % num_slices)
        raise RecipeError(
            f"data.batch_size = {size} does not divide into {num_slices} {what} of "
            f"{layout.system.name}: choose a multiple, such as {near}."
        )
    if num_slices > 1 and not recipe.data.drop_last and _meets_short_batch(data, layout):
        raise RecipeError(
            f"an epoch of {len(data.train_samples)} samples ends in a batch of fewer than "
            f"{size}, but {layout.system.name} needs batches of one size: set "
            f"data.drop_last = true."
        )


def _meets_short_batch(data: PreparedData, layout: Layout) -> bool:
    num_full, num_left = divmod(len(data.train_samples), data.config.batch_size)
    return num_left > 0 and layout.num_batches > num_full


@dataclass(frozen=True)
class Feed:
    """What one rank reads of every batch, made ahead of time by a thread.

    Attributes:
        recipe: Names the data and the seed.
        layout: The rival.
        rank: Who reads.
    """

    recipe: Recipe
    layout: Layout
    rank: int

    def batches(self) -> Iterator[Batch]:
        """The rank's part of every batch, in order."""
        reads_targets = self.layout.reads_targets(self.rank)
        if not reads_targets and not self.layout.reads_inputs(self.rank):
            for _ in range(self.layout.num_batches):
                yield Batch()
            return
        prefetcher = Prefetcher(self._messages(), self.recipe.runtime.capacity)
        try:
            with suppress(ChannelClosed):
                while True:
                    message = prefetcher.recv()
                    inputs = message.tensors.get(FEATURES)
                    targets = message.targets if reads_targets else None
                    yield Batch(inputs, targets)
                    prefetcher.release(message)
        finally:
            prefetcher.close()

    def _messages(self) -> Iterator[Message]:
        loader, slices, index = self._loader()
        steps_per_epoch = loader.steps_per_epoch // slices
        targets_only = not self.layout.reads_inputs(self.rank)
        for step in range(1, self.layout.num_batches + 1):
            epoch, batch = divmod(step - 1, steps_per_epoch)
            place = batch * slices + index
            if targets_only:
                fields = {TARGETS: _targets(loader, self.recipe.train.seed, epoch, place)}
            else:
                fields = loader.train_batch(epoch, place)
            yield Message(kind=Kind.TRAIN, sequence=step - 1, step=step, tensors=fields)

    def _loader(self) -> tuple[Loader, int, int]:
        """A loader, the number of its batches that make one of the run, and which is the rank's.

        The order of an epoch does not depend on the batch size, so a slice of a batch is a batch
        of a loader of smaller ones.
        """
        config = self.recipe.data
        slices, index = 1, 0
        if self.layout.system.kind == "replicas":
            slices, index = self.layout.num_ranks, self.rank
        small = config.model_copy(update={"batch_size": config.batch_size // slices})
        data = prepare(load_dataset(config), small)
        return Loader(data, seed=self.recipe.train.seed), slices, index


def _targets(loader: Loader, seed: int, epoch: int, index: int) -> Tensor:
    """The targets of a batch, without the work of making its inputs."""
    data = loader.data
    order = epoch_order(data.train_samples, seed=seed, epoch=epoch)
    samples = order[index * data.config.batch_size :][: data.config.batch_size]
    return data.dataset.train.targets.index_select(0, torch.from_numpy(samples))
