"""The loop of one rank: what it does with a message, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ppll.blocks.streams import Streams
from ppll.channels.local import local_channel
from ppll.ends import Ends
from ppll.message import Kind, Message
from ppll.metrics import Counts, Tally
from ppll.on_demand import OnDemand
from ppll.status import Activity, Monitor, Status
from ppll.worker import Worker, drain
from tests.interleaving import ListInbox, MadeUpBatches, blueprint_of, built_blocks, small_recipe


class Activities:
    """Notes what a rank did, and with which block."""

    def __init__(self) -> None:
        self.done: list[tuple[Activity, int]] = []

    def add(self, status: Status, end_s: float) -> None:
        self.done.append((status.activity, status.block))

    def finish(self) -> None:
        """Nothing is left to note."""


class NotedStreams(Streams):
    """Notes when a block's turn begins and ends."""

    def __init__(self, notes: list[str]) -> None:
        super().__init__()
        self._notes = notes

    @contextmanager
    def turn(self, position: int, *, overlaps: bool) -> Iterator[None]:
        self._notes.append(f"turn of {position}")
        yield
        self._notes.append(f"end of {position}")


def noted(end: Any, name: str, notes: list[str]) -> None:
    """Note calls of an end's method."""
    method = getattr(end, name)

    def call(*args: Any) -> Any:
        notes.append(name)
        return method(*args)

    setattr(end, name, call)


def test_only_the_last_blocks_stream_waits_for_the_copy_and_before_the_slot_is_given_back() -> None:
    """Where blocks overlap, each turn is on a stream of its own."""
    batches, notes = MadeUpBatches((6,)), list[str]()
    blocks = built_blocks(blueprint_of(small_recipe(), batches))[:3]
    batch = {"sequence": 0, "step": 1, "tensors": batches.train_batch(0, 0)}
    inbox = ListInbox(
        iter([Message(kind=Kind.TRAIN, **batch), Message(kind=Kind.STOP, sequence=1, step=1)])
    )
    outbox, _ = local_channel(2)
    for end, name in ((outbox, "send"), (outbox, "flush"), (inbox, "release")):
        noted(end, name, notes)
    drain(Worker(blocks, Ends(inbox, outbox), streams=NotedStreams(notes)).run())
    last_turn = ["turn of 2", "send", "flush", "end of 2", "release"]
    assert notes[notes.index("turn of 2") :] == [*last_turn, "send", "release"]


def messages_of(*kinds: Kind) -> list[Message]:
    """One of each kind, and the stop."""
    tensors = MadeUpBatches((6,)).train_batch(0, 0)
    return [
        Message(
            kind=kind,
            sequence=sequence,
            step=1,
            tensors=tensors if kind in (Kind.TRAIN, Kind.EVALUATE) else {},
            split="test" if kind.name.startswith("EVALUAT") else "",
        )
        for sequence, kind in enumerate([*kinds, Kind.STOP])
    ]


def done_with(*kinds: Kind) -> list[tuple[Activity, int]]:
    """What the worker of the first two blocks does with messages of these kinds, waits left out."""
    messages, batches = messages_of(*kinds), MadeUpBatches((6,))
    outbox, inbox_of_next = local_channel(len(messages))
    monitor, activities = Monitor(), Activities()
    monitor.recorder = activities
    blocks = built_blocks(blueprint_of(small_recipe(), batches))[:2]
    drain(Worker(blocks, Ends(ListInbox(iter(messages)), outbox), monitor=monitor).run())
    assert inbox_of_next.fill == len(messages)
    found = [done for done in activities.done if not done[0].waits]
    return found[1:-1]  # between the start and passing on the stop


def test_what_an_evaluation_takes_is_no_work_for_training_messages() -> None:
    """Its batches may be larger, and there may be many."""
    trained = done_with(Kind.TRAIN)
    assert trained == [
        (Activity.FORWARD, 0),
        (Activity.LEARN, 0),
        (Activity.FORWARD, 1),
        (Activity.SEND, -1),
        (Activity.LEARN, 1),
    ]
    tested = done_with(Kind.EVALUATION_BEGIN, Kind.EVALUATE)
    assert tested == [
        (Activity.EVALUATE, -1),  # to make ready
        (Activity.SEND, -1),
        (Activity.EVALUATION_FORWARD, 0),
        (Activity.EVALUATE, 0),
        (Activity.EVALUATION_FORWARD, 1),
        (Activity.EVALUATE, -1),
        (Activity.EVALUATE, 1),
    ]


@pytest.mark.parametrize(
    ("kind", "activity"),
    [
        (Kind.CHECKPOINT, Activity.COUNT),
        (Kind.EPOCH_END, Activity.COUNT),
        (Kind.EVALUATION_END, Activity.EVALUATE),
    ],
)
def test_reading_what_was_counted_is_no_wait_for_another_stage(
    kind: Kind, activity: Activity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU it waits for all that was given before."""
    monitor, found = Monitor(), []
    take = Counts.take

    def noted(counts: Counts, *args: Any) -> Tally:
        found.append((monitor.status.activity, monitor.status.block))
        return take(counts, *args)

    monkeypatch.setattr(Counts, "take", noted)
    blocks = built_blocks(blueprint_of(small_recipe(), MadeUpBatches((6,))))
    before = [Kind.EVALUATION_BEGIN] if kind is Kind.EVALUATION_END else []
    drain(Worker(blocks, Ends(ListInbox(iter(messages_of(*before, kind)))), monitor=monitor).run())
    assert found == [(activity, -1)] * len(blocks)


def test_what_is_made_on_demand_is_no_wait_for_data() -> None:
    """Nor is making what is tested work for training messages."""
    monitor, activities = Monitor(), Activities()
    monitor.recorder = activities
    blocks = built_blocks(blueprint_of(small_recipe(), MadeUpBatches((6,))))[:1]
    kinds = Kind.TRAIN, Kind.TRAIN, Kind.EVALUATION_BEGIN, Kind.EVALUATE
    inbox = OnDemand(iter(messages_of(*kinds)))
    drain(Worker(blocks, Ends(inbox, makes_batches=True), monitor=monitor).run())
    assert activities.done[1:] == [  # behind the start
        *[(Activity.MAKE_BATCH, -1), (Activity.FORWARD, 0), (Activity.LEARN, 0)] * 2,
        *[(Activity.MAKE_BATCH, -1), (Activity.EVALUATE, -1)],
        *[(Activity.EVALUATE, -1), (Activity.EVALUATION_FORWARD, 0), (Activity.EVALUATE, 0)],
        (Activity.MAKE_BATCH, -1),
    ]
