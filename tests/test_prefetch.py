"""The thread that makes messages ahead: order, bounds, errors, and its end."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from ppll.data import load_batches
from ppll.errors import ChannelClosed, ChannelError, ChannelTimeout
from ppll.message import Kind, Message
from ppll.prefetch import Prefetcher
from ppll.sections import DataConfig


def message(sequence: int) -> Message:
    return Message(kind=Kind.TRAIN, sequence=sequence, step=sequence + 1)


def messages(number: int, made: list[int] | None = None) -> Iterator[Message]:
    for sequence in range(number):
        if made is not None:
            made.append(sequence)
        yield message(sequence)


def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.001)


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "ppll-prefetch"]


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    until(lambda: not threads())


def test_messages_come_in_order_and_then_the_end() -> None:
    inbox = Prefetcher(messages(20), capacity=3)
    for sequence in range(20):
        received = inbox.recv(5)
        assert received.sequence == sequence
        inbox.release(received)
    with pytest.raises(ChannelClosed, match="has ended"):
        inbox.recv(5)
    assert inbox.statistics.messages == 20


@pytest.mark.parametrize("capacity", [1, 3])
def test_never_more_than_capacity_ahead(capacity: int) -> None:
    made: list[int] = []
    inbox = Prefetcher(messages(10, made), capacity)
    until(lambda: inbox.fill == capacity)
    received = inbox.recv()
    time.sleep(0.02)
    assert len(made) == capacity  # a message in use still counts
    assert inbox.fill == capacity
    inbox.release(received)
    until(lambda: len(made) == capacity + 1)
    inbox.close()


def test_error_comes_after_what_was_made_before_with_its_traceback() -> None:
    def fails_at_two() -> Iterator[Message]:
        yield from messages(2)
        raise OSError("disk gone")

    inbox = Prefetcher(fails_at_two(), capacity=4)
    until(lambda: not threads())
    assert [inbox.recv().sequence, inbox.recv().sequence] == [0, 1]
    with pytest.raises(OSError, match="disk gone") as caught:
        inbox.recv()
    assert "fails_at_two" in "".join(traceback.format_tb(caught.value.__traceback__))
    with pytest.raises(OSError, match="disk gone"):
        inbox.ready()


def test_error_wakes_who_waits() -> None:
    start = threading.Event()

    def fails() -> Iterator[Message]:
        start.wait()
        yield from messages(0)
        raise OSError("disk gone")

    inbox = Prefetcher(fails(), capacity=1)
    threading.Timer(0.02, start.set).start()
    with pytest.raises(OSError, match="disk gone"):
        inbox.recv(5)


def test_slow_loader_shows_as_receive_wait_and_may_time_out() -> None:
    go_on = threading.Event()

    def slow() -> Iterator[Message]:
        go_on.wait()
        yield message(0)

    inbox = Prefetcher(slow(), capacity=1)
    assert not inbox.ready()
    with pytest.raises(ChannelTimeout, match=r"0 of 1 slots"):
        inbox.recv(0.02)
    assert inbox.statistics.wait_s >= 0.02
    go_on.set()
    assert inbox.wait(5)
    inbox.close()


def test_close_ends_the_thread_while_it_waits_for_room() -> None:
    inbox = Prefetcher(messages(10), capacity=2)
    until(lambda: inbox.fill == 2)
    start = time.monotonic()
    inbox.close()
    assert time.monotonic() - start < 0.5
    assert not threads()
    inbox.close()
    with pytest.raises(ChannelClosed, match="this end"):
        inbox.recv()


def test_close_gives_up_on_an_iterator_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppll.prefetch._JOIN_TIMEOUT_S", 0.02)
    go_on = threading.Event()

    def hangs() -> Iterator[Message]:
        go_on.wait()
        yield message(0)

    inbox = Prefetcher(hangs(), capacity=1)
    inbox.close()
    go_on.set()  # what is made after the end is dropped
    until(lambda: not threads())
    assert inbox.fill == 0


def test_release_of_another_message_is_refused() -> None:
    inbox = Prefetcher(messages(2), capacity=2)
    first, second = inbox.recv(), inbox.recv()
    with pytest.raises(ChannelError, match="message 1 was released, but the oldest"):
        inbox.release(second)
    inbox.release(first)
    inbox.close()


def test_batches_are_the_same_ahead_or_not_and_the_generator_is_left_alone() -> None:
    options: dict[str, Any] = {"shape": (3, 8, 8), "num_train": 64}
    config = DataConfig(name="synthetic", batch_size=16, crop=2, flip=True, **options)

    def stream() -> Iterator[Message]:
        batches = load_batches(config, seed=3)
        places = [(epoch, index) for epoch in range(2) for index in range(batches.steps_per_epoch)]
        for sequence, place in enumerate(places):
            yield Message(
                kind=Kind.TRAIN, sequence=sequence, step=0, tensors=batches.train_batch(*place)
            )

    before = torch.get_rng_state()
    inbox = Prefetcher(stream(), capacity=2)
    for expected in stream():
        found = inbox.recv(5)
        for name, tensor in expected.tensors.items():
            assert torch.equal(found.tensors[name], tensor)
        inbox.release(found)
    assert torch.equal(before, torch.get_rng_state())
    inbox.close()


def test_thread_computes_with_as_many_threads_as_its_maker() -> None:
    found: list[int] = []

    def asks() -> Iterator[Message]:
        found.append(torch.get_num_threads())
        yield message(0)

    inbox = Prefetcher(asks(), capacity=1)
    inbox.recv(5)
    inbox.close()
    assert found == [torch.get_num_threads()]
