"""Everything that happens in a run, in order, as one stream of messages.

Training batches, evaluations, checkpoint marks and the stop stand in one sequence, so each block
meets every one of them after exactly the same batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from torch import Tensor

from ppll.config import Recipe
from ppll.ending import Ending
from ppll.message import TARGETS, Kind, Message, canonical

__all__ = ["EVERYTHING_SAVED", "Batches", "evaluation_stream", "training_stream"]

EVERYTHING_SAVED: Final = 2**62
"""``saved_step`` of the stream itself: nothing before the first stage has anything to save."""

Draft = Mapping[str, Any]
"""The fields of a message but its number."""


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

    def num_samples(self, index: int) -> int:
        """Samples of training batch number ``index`` of an epoch, in all replicas together."""
        ...

    def train_batch(self, epoch: int, index: int) -> Mapping[str, Tensor]:
        """The fields of one training batch; of a replica's shard of it, where there are several."""
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
    ending: Ending | None = None,
) -> Iterator[Message]:
    """A whole run, from the checkpoint after ``start_step`` batches to the stop.

    Args:
        batches: Where batches come from.
        recipe: The run's recipe.
        num_steps: Training batches of the whole run.
        start_step: Training batches that the run has behind it.
        ending: Asked after every batch; once it says yes, a checkpoint and the stop follow, with
            what the end of a run evaluates between them if it says that, too.
    """
    return _numbered(_drafts(batches, recipe, num_steps, start_step, ending or Ending()))


def evaluation_stream(batches: Batches, step: int) -> Iterator[Message]:
    """Evaluate every split once and stop; nothing is learned."""
    drafts = itertools.chain.from_iterable(
        _evaluation(batches, split, step, 0) for split in batches.splits
    )
    return _numbered(itertools.chain(drafts, [_mark(Kind.STOP, step, 0)]))


def _numbered(drafts: Iterator[Draft]) -> Iterator[Message]:
    for sequence, draft in enumerate(drafts):
        yield Message(sequence=sequence, saved_step=EVERYTHING_SAVED, **draft)


def _mark(kind: Kind, step: int, epoch: int, split: str = "") -> Draft:
    return {"kind": kind, "step": step, "epoch": epoch, "split": split}


def _drafts(
    batches: Batches,
    recipe: Recipe,
    num_steps: int,
    start_step: int,
    ending: Ending,
) -> Iterator[Draft]:
    per_epoch = batches.steps_per_epoch
    every = recipe.checkpoint.every_steps
    if 0 < start_step < num_steps and start_step % per_epoch == 0:
        yield from _epoch_end(batches, recipe, start_step)
    for step in range(start_step + 1, num_steps + 1):
        epoch, index = divmod(step - 1, per_epoch)
        for part in _parts(batches.train_batch(epoch, index), recipe, batches.num_samples(index)):
            yield {**_mark(Kind.TRAIN, step, epoch), **part}
        ends = step < num_steps and ending.after(step)
        is_due = bool(every and step % every == 0) or (
            recipe.checkpoint.keeps_best and _is_evaluated(batches, recipe, step)
        )
        if ends or step == num_steps or is_due:
            yield _mark(Kind.CHECKPOINT, step, epoch)
        if ends and ending.is_tested:
            num_steps = step
            break
        if ends:
            yield _mark(Kind.STOP, step, epoch)
            return
        if step % per_epoch == 0 and step < num_steps:
            yield from _epoch_end(batches, recipe, step)
    last_epoch = (num_steps - 1) // per_epoch
    yield _mark(Kind.EPOCH_END, num_steps, last_epoch)
    for split in batches.splits:
        yield from _evaluation(batches, split, num_steps, last_epoch)
    yield _mark(Kind.STOP, num_steps, last_epoch)


def _epoch_end(batches: Batches, recipe: Recipe, step: int) -> Iterator[Draft]:
    """What follows the last batch of an epoch that is not the run's last."""
    num_epochs = step // batches.steps_per_epoch
    yield _mark(Kind.EPOCH_END, step, num_epochs - 1)
    if _is_evaluated(batches, recipe, step):
        split = "validation" if "validation" in batches.splits else "test"
        yield from _evaluation(batches, split, step, num_epochs - 1)


def _is_evaluated(batches: Batches, recipe: Recipe, step: int) -> bool:
    """Whether an evaluation follows a batch that is not the run's last."""
    num_epochs, left = divmod(step, batches.steps_per_epoch)
    every = recipe.train.evaluate_every
    return left == 0 and every > 0 and num_epochs % every == 0


def _evaluation(batches: Batches, split: str, step: int, epoch: int) -> Iterator[Draft]:
    yield _mark(Kind.EVALUATION_BEGIN, step, epoch, split)
    for index, tensors in enumerate(batches.evaluation_batches(split)):
        place = {"part": index, "num_parts": index + 1}
        yield {**_mark(Kind.EVALUATE, step, epoch, split), **place, "tensors": tensors}
    yield _mark(Kind.EVALUATION_END, step, epoch, split)


def _parts(tensors: Mapping[str, Tensor], recipe: Recipe, num_in_batch: int) -> Iterator[Draft]:
    """A batch (or a replica's shard of it) as the messages that it travels as, of nearly equal
    size."""
    num_samples = tensors[TARGETS].shape[0]
    num_parts = recipe.num_parts(num_in_batch)
    bounds = [num_samples * i // num_parts for i in range(num_parts + 1)]
    for part, (start, end) in enumerate(itertools.pairwise(bounds)):
        yield {
            "tensors": {name: canonical(t[start:end]) for name, t in tensors.items()},
            "part": part,
            "num_parts": num_parts,
            "share": (end - start) / num_in_batch,
        }
