"""The loop of one rank: what it does with a message, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ppll.blocks.streams import Streams
from ppll.channels.local import local_channel
from ppll.ends import Ends
from ppll.message import Kind, Message
from ppll.status import Activity, Monitor, Status
from ppll.worker import Worker, drain
from tests.interleaving import ListInbox, MadeUpBatches, blueprint_of, built_blocks, small_recipe


class Activities:
    """Notes what a rank did, and with which block."""

    def __init__(self) -> None:
        self.done: list[tuple[Activity, int]] = []

    def add(self, status: Status, end_s: float) -> None:
        self.done.append((status.activity, status.block))


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


def done_with(*kinds: Kind) -> list[tuple[Activity, int]]:
    """What the worker of the first two blocks does with messages of these kinds, waits left out."""
    batches = MadeUpBatches((6,))
    tensors = batches.train_batch(0, 0)
    outbox, inbox_of_next = local_channel(len(kinds) + 1)
    messages = [
        Message(
            kind=kind,
            sequence=sequence,
            step=1,
            tensors=tensors if kind in (Kind.TRAIN, Kind.EVALUATE) else {},
            split="test" if kind.name.startswith("EVALUAT") else "",
        )
        for sequence, kind in enumerate([*kinds, Kind.STOP])
    ]
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
        (Activity.SEND, -1),
        (Activity.EVALUATION_FORWARD, 0),
        (Activity.EVALUATE, 0),
        (Activity.EVALUATION_FORWARD, 1),
        (Activity.EVALUATE, -1),
        (Activity.EVALUATE, 1),
    ]
