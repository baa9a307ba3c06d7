"""Messages that are made as they are received: order, laziness, errors, and the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import ppll
from ppll.errors import ChannelClosed, ChannelError
from ppll.message import Kind, Message
from ppll.on_demand import OnDemand
from tests.faults import recipe


def messages(number: int, made: list[int]) -> Iterator[Message]:
    for sequence in range(number):
        made.append(sequence)
        yield Message(kind=Kind.TRAIN, sequence=sequence, step=sequence + 1)


def test_each_is_made_when_it_is_asked_for_and_then_the_end() -> None:
    made: list[int] = []
    inbox = OnDemand(messages(3, made))
    for sequence in range(3):
        assert inbox.ready()
        assert inbox.wait(0)
        assert made == list(range(sequence))
        received = inbox.recv()
        assert (received.sequence, inbox.fill) == (sequence, 1)
        inbox.release(received)
        assert inbox.fill == 0
    with pytest.raises(ChannelClosed, match="has ended"):
        inbox.recv()
    assert inbox.statistics.messages == 3


def test_nothing_is_made_after_the_close() -> None:
    made: list[int] = []
    inbox = OnDemand(messages(3, made))
    inbox.close()
    inbox.close()
    with pytest.raises(ChannelClosed, match="this end"):
        inbox.recv()
    assert made == []


def test_an_error_comes_where_it_happened() -> None:
    def fails() -> Iterator[Message]:
        yield from messages(1, [])
        raise OSError("disk gone")

    inbox = OnDemand(fails())
    first = inbox.recv()
    with pytest.raises(OSError, match="disk gone"):
        inbox.recv()
    inbox.release(first)
    with pytest.raises(ChannelError, match="message 0 was released"):
        inbox.release(first)


SETTINGS = ["data.flip=true", "data.crop=1", "data.mixup=0.2", "train.accumulate=2"]


def fit(out: Path, *settings: str, **options: bool) -> ppll.Result:
    base = recipe(stages=1).with_settings([*SETTINGS, *settings])
    return ppll.Trainer(base, out=out, **options).fit()


@pytest.mark.slow
def test_a_run_ends_the_same_with_batches_made_ahead_or_not(tmp_path: Path) -> None:
    """On processors, too, ``"device"`` makes batches on demand."""
    ahead = fit(tmp_path / "ahead", "runtime.data=host")
    found: list[str] = []
    start = threading.Thread.start

    def noted(self: threading.Thread) -> None:
        found.append(self.name)
        start(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", noted)
        there = fit(tmp_path / "there", "runtime.data=device")
    assert there.weights_sha256 == ahead.weights_sha256
    assert there.test_accuracy == ahead.test_accuracy
    assert "ppll-prefetch" not in found


def test_a_run_goes_on_with_its_data_elsewhere(tmp_path: Path) -> None:
    settings = ["schedule.name=constant"]
    fit(tmp_path / "run", *settings, "train.epochs=1", "runtime.data=host")
    found = fit(tmp_path / "run", *settings, "train.epochs=2", "runtime.data=device", resume=True)
    expected = fit(tmp_path / "whole", *settings, "train.epochs=2")
    assert found.weights_sha256 == expected.weights_sha256
