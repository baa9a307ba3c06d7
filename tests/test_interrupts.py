"""Signals in a process that computes by itself."""

from __future__ import annotations

import re
import signal
from contextlib import suppress

import pytest

from ppll.errors import Interrupted
from ppll.interrupts import Interrupts


def hear(interrupts: Interrupts, num_signals: int) -> None:
    with interrupts:
        for _ in range(num_signals):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("most", "message"), [(0, "stopped at once."), (1, "stopped at once; nothing more was saved.")]
)
def test_only_what_saves_something_says_what_was_not_saved(most: int, message: str) -> None:
    interrupts = Interrupts(most=most)
    with pytest.raises(Interrupted, match=f"^{re.escape(message)}$"):
        hear(interrupts, most + 1)
    assert interrupts.count == most + 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_failure_that_is_expected_hides_a_signal(number: int) -> None:
    with pytest.raises(Interrupted), Interrupts(most=0), suppress(Exception):
        signal.raise_signal(number)


def test_an_error_that_is_no_signal_stays_what_it_is() -> None:
    with pytest.raises(KeyError), Interrupts(most=0):
        raise KeyError
