"""The order of everything that happens in a run, letter by letter.

t: training batch, B: an evaluation begins, v/e: its batch of validation/test, |: it ends,
E: end of an epoch, C: checkpoint, S: stop.
"""

from __future__ import annotations

import pytest
import torch

from ppll.config import Recipe
from ppll.ending import Ending
from ppll.interrupts import Wish
from ppll.message import Kind
from ppll.stream import EVERYTHING_SAVED, evaluation_stream, training_stream
from tests.interleaving import MadeUpBatches

LETTERS = {
    Kind.TRAIN: "t",
    Kind.EVALUATION_BEGIN: "B",
    Kind.EVALUATION_END: "|",
    Kind.EPOCH_END: "E",
    Kind.CHECKPOINT: "C",
    Kind.STOP: "S",
}


class Batches(MadeUpBatches):
    def __init__(self, steps_per_epoch: int, splits: tuple[str, ...] = ("test",)) -> None:
        super().__init__(sizes=(2,) * steps_per_epoch)
        self.splits = splits

    def evaluation_batches(self, split):
        return iter(self._batches[:1])


def letters(messages) -> str:
    marks = {"validation": "v", "test": "e", "": ""}
    return "".join(LETTERS.get(m.kind) or marks[m.split] for m in messages)


def order(num_steps: int, splits=("test",), train=None, checkpoint=None, **start) -> str:
    recipe = Recipe.from_dict(
        {"data": {"validation": 1}, "train": train or {}, "checkpoint": checkpoint or {}}
    )
    return letters(training_stream(Batches(2, splits), recipe, num_steps, **start))


BOTH = ("validation", "test")
BEST = {"keep": "best"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"num_steps": 2}, "ttCEBe|S"),
        ({"num_steps": 4}, "ttEBe|ttCEBe|S"),
        ({"num_steps": 3}, "ttEBe|tCEBe|S"),
        ({"num_steps": 4, "splits": BOTH}, "ttEBv|ttCEBv|Be|S"),
        ({"num_steps": 6, "train": {"evaluate_every": 2}}, "ttEttEBe|ttCEBe|S"),
        ({"num_steps": 4, "train": {"evaluate_every": 0}}, "ttEttCEBe|S"),
        ({"num_steps": 4, "checkpoint": {"every_steps": 2}}, "ttCEBe|ttCEBe|S"),
        ({"num_steps": 4, "checkpoint": {"every_steps": 3}}, "ttEBe|tCtCEBe|S"),
        ({"num_steps": 4, "splits": BOTH, "checkpoint": BEST}, "ttCEBv|ttCEBv|Be|S"),
        ({"num_steps": 5, "splits": BOTH, "checkpoint": BEST}, "ttCEBv|ttCEBv|tCEBv|Be|S"),
        (
            {"num_steps": 6, "splits": BOTH, "train": {"evaluate_every": 2}, "checkpoint": BEST},
            "ttEttCEBv|ttCEBv|Be|S",
        ),
        (
            {"num_steps": 4, "splits": BOTH, "checkpoint": {**BEST, "every_steps": 1}},
            "tCtCEBv|tCtCEBv|Be|S",
        ),
        ({"num_steps": 4, "start_step": 1}, "tEBe|ttCEBe|S"),
        ({"num_steps": 4, "start_step": 2}, "EBe|ttCEBe|S"),
        ({"num_steps": 4, "start_step": 3}, "tCEBe|S"),
        ({"num_steps": 4, "start_step": 4}, "EBe|S"),
        ({"num_steps": 4, "ending": Ending(lambda: True)}, "tCS"),
        ({"num_steps": 4, "ending": Ending(lambda: True), "start_step": 3}, "tCEBe|S"),
        ({"num_steps": 4, "ending": Ending(lambda: Wish.TEST)}, "tCEBe|S"),
        ({"num_steps": 4, "ending": Ending(lambda: Wish.TEST), "splits": BOTH}, "tCEBv|Be|S"),
        ({"num_steps": 4, "ending": Ending(lambda: Wish.TEST), "start_step": 1}, "tCEBe|S"),
        ({"num_steps": 4, "ending": Ending(lambda: Wish.TEST), "start_step": 3}, "tCEBe|S"),
    ],
)
def test_order(arguments, expected: str) -> None:
    assert order(**arguments) == expected


def test_a_run_that_ends_early_loses_nothing_when_it_goes_on() -> None:
    """What was passed before the interruption and after it is the whole run."""
    whole = order(4)
    for stop in (1, 2, 3):
        asked = iter(range(1, 5))
        first = order(4, ending=Ending(lambda asked=asked, stop=stop: next(asked) >= stop))
        assert first.endswith("CS")
        assert first.removesuffix("CS") + order(4, start_step=stop) == whole


def test_messages_count_steps_epochs_and_sequence() -> None:
    messages = list(training_stream(Batches(2), Recipe(), 3, start_step=1))
    assert [m.sequence for m in messages] == list(range(len(messages)))
    assert [(m.step, m.epoch) for m in messages if m.kind is Kind.TRAIN] == [(2, 0), (3, 1)]
    assert [(m.step, m.epoch) for m in messages if m.kind is Kind.EPOCH_END] == [(2, 0), (3, 1)]
    assert {m.saved_step for m in messages} == {EVERYTHING_SAVED}


def test_batches_are_those_of_their_epoch_and_place() -> None:
    asked: list[tuple[int, int]] = []

    class Asked(Batches):
        def train_batch(self, epoch: int, index: int):
            asked.append((epoch, index))
            return super().train_batch(epoch, index)

    list(training_stream(Asked(2), Recipe(), 5, start_step=1))
    assert asked == [(0, 1), (1, 0), (1, 1), (2, 0)]


def test_an_evaluation_passes_every_split_once() -> None:
    messages = list(evaluation_stream(Batches(2, BOTH), step=7))
    assert letters(messages) == "Bv|Be|S"
    assert {m.step for m in messages} == {7}


def test_messages_of_an_evaluation_know_their_place() -> None:
    """Also behind a checkpoint, where they have other numbers."""
    batches = MadeUpBatches(sizes=(2, 2, 2))
    recipe = Recipe.from_dict({})
    for messages in (training_stream(batches, recipe, 3), evaluation_stream(batches, step=3)):
        tested = [m for m in messages if m.kind is Kind.EVALUATE]
        assert [m.part for m in tested] == list(range(len(tested)))
        assert len(tested) > 1


def test_a_batch_travels_in_parts_of_nearly_equal_size() -> None:
    batches = MadeUpBatches(sizes=(7, 2))
    recipe = Recipe.from_dict({"train": {"accumulate": 3}, "data": {"batch_size": 7}})
    stream = [m for m in training_stream(batches, recipe, 2) if m.kind is Kind.TRAIN]
    assert [(m.step, m.part, m.num_parts, len(m.targets)) for m in stream] == [
        (1, 0, 3, 2),
        (1, 1, 3, 2),
        (1, 2, 3, 3),
        (2, 0, 1, 2),  # a short batch is not cut as small as that
    ]
    assert [m.share for m in stream] == [2 / 7, 2 / 7, 3 / 7, 1]
    assert [m.ends_batch for m in stream] == [False, False, True, True]
    whole = batches.train_batch(0, 0)
    for name in whole:
        assert torch.equal(torch.cat([m.tensors[name] for m in stream[:3]]), whole[name])
        assert all(m.tensors[name].data_ptr() % 64 == 0 for m in stream)
