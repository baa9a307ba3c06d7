"""Who stands still, and what the others wait for."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ppll.mesh import Mesh
from ppll.status import Activity, Status

__all__ = ["Pauses", "describe", "find_stall", "is_stopped", "request_stacks", "stall_cause"]

_STACKS_TIMEOUT_S: Final = 0.3
_START_TIMEOUT_S: Final = 120.0
"""A rank that imports, loads and connects has nothing that ``stall_timeout_s`` speaks of."""
_LONG_TURN_S: Final = 3.0


class Pauses:
    """Notices that the looking process itself was stopped (Ctrl-Z), and its ranks with it."""

    def __init__(self) -> None:
        self.resumed_s = -math.inf
        """When it went on after its last pause, by the machine's monotonic clock."""

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Around the short wait between two looks: one that took long was a pause."""
        begin_s = time.monotonic()
        yield
        end_s = time.monotonic()
        if end_s - begin_s > _LONG_TURN_S:
            self.resumed_s = end_s


def find_stall(
    statuses: Sequence[Status],
    mesh: Mesh,
    now_s: float,
    timeout_s: float,
    stopped: Callable[[int], bool] = lambda _: False,
    through: Container[int] = (),
    resumed_s: float = -math.inf,
) -> int | None:
    """The rank that keeps the others from going on, if none has moved for too long.

    A rank that waits is nobody's cause while another computes. Where all wait, it is one that the
    operating system has stopped, else one that waits for what is there: a receiver behind a full
    channel. Otherwise it is the one that has stood still longest; for the first rank, that waits
    for data.

    Args:
        statuses: Of every rank.
        mesh: Who sends to whom.
        now_s: The machine's monotonic clock.
        timeout_s: How long a rank may take for one thing.
        stopped: Whether the operating system has stopped a rank.
        through: Ranks that have said what they came to.
        resumed_s: When all went on after a pause; what they took before does not count.

    Returns:
        The rank, or none while there is hope.
    """
    unfinished = [r for r in range(len(statuses)) if r not in through]
    computing = [r for r in unfinished if not statuses[r].activity.waits]
    late = [_is_late(status, max(status.since, resumed_s), now_s, timeout_s) for status in statuses]
    suspects = [r for r in computing or unfinished if late[r]]
    if not suspects or (not computing and len(suspects) < len(unfinished)):
        return None
    behind_full = [r for r in suspects if _is_full_before(statuses, mesh, r)]
    candidates = [r for r in suspects if stopped(r)] or behind_full or suspects
    return min(candidates, key=lambda rank: statuses[rank].since)


def _is_late(status: Status, since_s: float, now_s: float, timeout_s: float) -> bool:
    if status.activity is Activity.START:
        timeout_s = max(timeout_s, _START_TIMEOUT_S)
    return now_s - since_s > timeout_s


def _is_full_before(statuses: Sequence[Status], mesh: Mesh, rank: int) -> bool:
    return statuses[rank].activity is Activity.RECEIVE and any(
        statuses[sender].activity is Activity.SEND_WAIT for sender in mesh.before(rank)
    )


def is_stopped(pid: int) -> bool:
    """Whether the operating system has stopped a process (Linux; elsewhere always false)."""
    with suppress(OSError, IndexError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state in "Tt"
    return False


def request_stacks(pid: int, path: Path, number: signal.Signals) -> str:
    """The stacks of all threads of a rank, as it wrote them when it was asked to."""
    if is_stopped(pid):
        return "The process is stopped (by SIGSTOP or a debugger), so it has no say in this."
    with suppress(ProcessLookupError):
        os.kill(pid, number)
    deadline = time.monotonic() + _STACKS_TIMEOUT_S
    size = -1
    # The rank writes in one go; two equal sizes in a row mean that it is done.
    while time.monotonic() < deadline and (size <= 0 or path.stat().st_size != size):
        size = path.stat().st_size if path.exists() else 0
        time.sleep(0.02)
    return path.read_text(encoding="utf-8") if path.exists() else ""


def stall_cause(timeout_s: float) -> str:
    """What is said of a rank that stands still."""
    return f"no progress for {timeout_s:g} s (runtime.stall_timeout_s)"


def describe(statuses: Sequence[Status], now_s: float) -> str:
    """A line a rank: what it does, since when, and how full its channels are."""
    return "\n".join(
        f"  rank {rank}: {s.activity.name.lower()} for {now_s - s.since:.1f} s at step {s.step}, "
        f"{s.inbox_fill} message(s) in its inbox, {s.outbox_fill} in its outbox"
        for rank, s in enumerate(statuses)
    )
