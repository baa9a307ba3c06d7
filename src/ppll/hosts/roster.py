"""What one process knows of all others of a run on several hosts, and what it lets them know.

Entries lie in the agents' store, a JSON object a process. Clocks of hosts differ, so an entry says
what its own clock shows, and whether a process is alive is seen from whether its entries change.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from ppll.launching.failure import Failure
from ppll.launching.stall import describe
from ppll.mesh import Mesh
from ppll.status import Activity, Status

__all__ = ["Roster"]


@dataclass
class _Seen:
    """What was last read of a process."""

    status: Status
    host: str
    beat: int = -1
    changed_s: float = 0.0


class Roster:
    """All processes, as this one sees them.

    Args:
        rank: Who this is.
        mesh: All processes.
        host_name: Where it is, for people.
    """

    def __init__(self, rank: int, mesh: Mesh, host_name: str) -> None:
        self._rank = rank
        self._mesh = mesh
        self._host_name = host_name
        self._seen: dict[int, _Seen] = {}
        self._beat = 0

    def show(self, store: Any, status: Status) -> None:
        """Let the others know what this process does."""
        self._beat += 1
        entry = {
            "beat": self._beat,
            "host": self._host_name,
            "clock_s": time.monotonic(),
            "status": [int(status.activity), *status[1:]],
        }
        store.set(f"page/{self._rank}", json.dumps(entry))

    def look(self, store: Any, now_s: float) -> None:
        """Read all entries, once every process has made one."""
        keys = [f"page/{rank}" for rank in range(self._mesh.size)]
        if not store.check(keys):
            return
        for rank, content in enumerate(store.multi_get(keys)):
            entry = json.loads(content)
            status = _by_this_clock(entry["status"], now_s - entry["clock_s"])
            seen = self._seen.setdefault(rank, _Seen(status, entry["host"]))
            if entry["beat"] != seen.beat:
                seen.status, seen.beat, seen.changed_s = status, entry["beat"], now_s

    def statuses(self) -> list[Status]:
        """Of all processes, in order of rank; empty before the first look that found all."""
        return [self._seen[rank].status for rank in sorted(self._seen)]

    def most_silent(self, now_s: float) -> tuple[int, float]:
        """Whose entry has not changed for longest, and for how many seconds."""
        rank = min(self._seen, key=lambda r: self._seen[r].changed_s)
        return rank, now_s - self._seen[rank].changed_s

    def silent_since(self, begin_s: float) -> list[int]:
        """Other processes whose entries have not changed since then, the oldest first."""
        others = {r: s.changed_s for r, s in self._seen.items() if r != self._rank}
        return sorted((r for r in others if others[r] <= begin_s), key=others.__getitem__)

    def about(self, rank: int, cause: str, now_s: float) -> str:
        """What is said of a process that cannot say anything itself."""
        seen = self._seen[rank]
        detail = describe(self.statuses(), now_s)
        cause = f"{cause}, on host {seen.host}"
        place = self._mesh.place(rank)
        return Failure.silent(rank, seen.status, now_s, cause, detail, place).message()


def _by_this_clock(fields: list[Any], ahead_s: float) -> Status:
    """Another host's status, by the clock of this one, which is so many seconds ahead."""
    activity, *rest = fields
    status = Status(Activity(activity), *rest)
    started_s = status.started_s and status.started_s + ahead_s
    return status._replace(since=status.since + ahead_s, started_s=started_s)
