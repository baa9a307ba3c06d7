"""Signals in a process that computes by itself."""

from __future__ import annotations

import re
import signal

import pytest

from ppll.errors import Interrupted
from ppll.interrupts import Interrupts


@pytest.mark.parametrize(
    ("most", "message"), [(0, "stopped at once."), (1, "stopped at once; nothing more was saved.")]
)
def test_only_what_saves_something_says_what_was_not_saved(most: int, message: str) -> None:
    with Interrupts(most=most) as interrupts:
        for _ in range(most):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted, match=f"^{re.escape(message)}$"):
            signal.raise_signal(signal.SIGINT)
    assert interrupts.count == most + 1
