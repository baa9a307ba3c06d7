"""Everything that happens in a run, in order, as one stream of messages.

Training batches, evaluations, checkpoint marks and the stop stand in one sequence, so each block
meets every one of them after exactly the same batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol

from torch import Tensor

from ppll.config import Recipe
from ppll.message import Kind, Message

__all__ = ["EVERYTHING_SAVED", "Batches", "evaluation_stream", "training_stream"]

EVERYTHING_SAVED: Final = 2**62
"""``saved_step`` of the stream itself: nothing before the first stage has anything to save."""

Draft = tuple[Kind, int, int, str, Mapping[str, Tensor]]


class Batches(Protocol):
    """Where batches come from."""

    @property
    def steps_per_epoch(self) -> int:
        """Training batches of an epoch."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """Samples that can be evaluated: ``"test"``, and ``"validation"`` where it is kept."""
        ...

    def train_batch(self, epoch: int, index: int) -> Mapping[str, Tensor]:
        """The fields of one training batch."""
        ...

    def evaluation_batches(self, split: str) -> Iterator[Mapping[str, Tensor]]:
        """The fields of every batch of a split, in order."""
        ...


def training_stream(
    batches: Batches,
    recipe: Recipe,
    num_steps: int,
    *,
    start_step: int = 0,
    ends_early: Callable[[], bool] = lambda: False,
) -> Iterator[Message]:
    """A whole run, from the checkpoint after ``start_step`` batches to the stop.

    Args:
        batches: Where batches come from.
        recipe: The run's recipe.
        num_steps: Training batches of the whole run.
        start_step: Training batches that the run has behind it.
        ends_early: Asked after every batch; once it says yes, a checkpoint and the stop follow.
    """
    return _numbered(_drafts(batches, recipe, num_steps, start_step, ends_early))


def evaluation_stream(batches: Batches, step: int) -> Iterator[Message]:
    """Evaluate every split once and stop; nothing is learned."""
    drafts = itertools.chain.from_iterable(
        _evaluation(batches, split, step, 0) for split in batches.splits
    )
    return _numbered(itertools.chain(drafts, [(Kind.STOP, step, 0, "", {})]))


def _numbered(drafts: Iterator[Draft]) -> Iterator[Message]:
    for sequence, (kind, step, epoch, split, tensors) in enumerate(drafts):
        yield Message(
            kind=kind,
            sequence=sequence,
            step=step,
            epoch=epoch,
            split=split,
            saved_step=EVERYTHING_SAVED,
            tensors=tensors,
        )


def _drafts(
    batches: Batches,
    recipe: Recipe,
    num_steps: int,
    start_step: int,
    ends_early: Callable[[], bool],
) -> Iterator[Draft]:
    per_epoch = batches.steps_per_epoch
    every = recipe.checkpoint.every_steps
    if 0 < start_step < num_steps and start_step % per_epoch == 0:
        yield from _epoch_end(batches, recipe, start_step)
    for step in range(start_step + 1, num_steps + 1):
        epoch, index = divmod(step - 1, per_epoch)
        yield Kind.TRAIN, step, epoch, "", batches.train_batch(epoch, index)
        interrupted = step < num_steps and ends_early()
        if interrupted or step == num_steps or (every and step % every == 0):
            yield Kind.CHECKPOINT, step, epoch, "", {}
        if interrupted:
            yield Kind.STOP, step, epoch, "", {}
            return
        if step % per_epoch == 0 and step < num_steps:
            yield from _epoch_end(batches, recipe, step)
    last_epoch = (num_steps - 1) // per_epoch
    yield Kind.EPOCH_END, num_steps, last_epoch, "", {}
    for split in batches.splits:
        yield from _evaluation(batches, split, num_steps, last_epoch)
    yield Kind.STOP, num_steps, last_epoch, "", {}


def _epoch_end(batches: Batches, recipe: Recipe, step: int) -> Iterator[Draft]:
    """What follows the last batch of an epoch that is not the run's last."""
    num_epochs = step // batches.steps_per_epoch
    yield Kind.EPOCH_END, step, num_epochs - 1, "", {}
    if recipe.train.evaluate_every and num_epochs % recipe.train.evaluate_every == 0:
        split = "validation" if "validation" in batches.splits else "test"
        yield from _evaluation(batches, split, step, num_epochs - 1)


def _evaluation(batches: Batches, split: str, step: int, epoch: int) -> Iterator[Draft]:
    for tensors in batches.evaluation_batches(split):
        yield Kind.EVALUATE, step, epoch, split, tensors
    yield Kind.EVALUATION_END, step, epoch, split, {}
