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
from ppll.channels.base import ReceiveEnd
from ppll.config import Recipe
from ppll.data import Loader, PreparedData, load_dataset, prepare
from ppll.data.home import home_of
from ppll.errors import ChannelClosed, RecipeError
from ppll.losses.classification import mixed_targets
from ppll.message import FEATURES, MIX, OTHER_TARGETS, TARGETS, Kind, Message
from ppll.on_demand import OnDemand
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
    """What one rank reads of every batch, made where and when PPLL's first stage would make it.

    Attributes:
        recipe: Names the data and the seed.
        layout: The rival.
        rank: Who reads.
        device: Where the rank computes.
    """

    recipe: Recipe
    layout: Layout
    rank: int
    device: torch.device

    def batches(self) -> Iterator[Batch]:
        """The rank's part of every batch, in order."""
        reads_targets = self.layout.reads_targets(self.rank)
        if not reads_targets and not self.layout.reads_inputs(self.rank):
            for _ in range(self.layout.num_batches):
                yield Batch()
            return
        inbox = self._inbox()
        try:
            with suppress(ChannelClosed):
                while True:
                    message = inbox.recv()
                    inputs = message.tensors.get(FEATURES)
                    targets = message.targets if reads_targets else None
                    yield Batch(inputs, targets)
                    inbox.release(message)
        finally:
            inbox.close()

    def _inbox(self) -> ReceiveEnd:
        loader, slices, index = self._loader()
        runtime = self.recipe.runtime
        if self.layout.reads_inputs(self.rank):  # else a data set of them would take the room
            loader.move_to(home_of(loader.data, runtime.data, self.device))
        messages = self._messages(loader, slices, index)
        if loader.device.type == "cuda":
            return OnDemand(messages)
        return Prefetcher(messages, runtime.capacity, self.device)

    def _messages(self, loader: Loader, slices: int, index: int) -> Iterator[Message]:
        steps_per_epoch = loader.steps_per_epoch // slices
        targets_only = not self.layout.reads_inputs(self.rank)
        for step in range(1, self.layout.num_batches + 1):
            epoch, batch = divmod(step - 1, steps_per_epoch)
            place = batch * slices + index
            make = loader.train_targets if targets_only else loader.train_batch
            fields = _with_one_target(make(epoch, place), loader.data.dataset.num_classes)
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


def _with_one_target(fields: dict[str, Tensor], num_classes: int) -> dict[str, Tensor]:
    """Both classes of mixed samples as shares of all, since a rival's loss takes one tensor."""
    if MIX not in fields:
        return fields
    shares = mixed_targets(fields[TARGETS], fields[OTHER_TARGETS], fields[MIX], num_classes)
    return {**fields, TARGETS: shares}
