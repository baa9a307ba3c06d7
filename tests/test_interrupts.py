"""Signals in a process that computes by itself."""

from __future__ import annotations

import re
import signal
from contextlib import suppress
from types import SimpleNamespace

import pytest

from ppll.errors import Interrupted
from ppll.interrupts import Interrupts


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that ``Interrupts`` sees."""
    now = [0.0]
    monkeypatch.setattr("ppll.interrupts.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def hear(interrupts: Interrupts, clock: list[float], *times: float) -> None:
    with interrupts:
        for clock[0] in times:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("most", "message"), [(0, "stopped at once."), (1, "stopped at once; nothing more was saved.")]
)
def test_only_what_saves_something_says_what_was_not_saved(
    most: int, message: str, clock: list[float]
) -> None:
    interrupts = Interrupts(most=most)
    with pytest.raises(Interrupted, match=f"^{re.escape(message)}$"):
        hear(interrupts, clock, *range(most + 1))
    assert interrupts.count == most + 1


def test_a_signal_to_a_process_and_to_its_group_is_one(clock: list[float]) -> None:
    interrupts = Interrupts(most=1)
    hear(interrupts, clock, 10, 10, 10.4)
    assert interrupts.count == 1
    with pytest.raises(Interrupted):
        hear(interrupts, clock, 10.6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_failure_that_is_expected_hides_a_signal(number: int) -> None:
    with pytest.raises(Interrupted), Interrupts(most=0), suppress(Exception):
        signal.raise_signal(number)


def test_an_error_that_is_no_signal_stays_what_it_is() -> None:
    with pytest.raises(KeyError), Interrupts(most=0):
        raise KeyError
