"""How a process that ``torchrun`` has started leaves: with its agent at the latest, and without a
trace.

Nothing tells such a process which one its agent is, and the agent may die before the first line
here runs. So it is looked for among the processes that this one comes from: the nearest that has
loaded torch. That its number is 1 means nothing, since torchrun may be all that a container runs.
Only Linux shows what a process has loaded; elsewhere the parent is taken for the agent.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, NoReturn

__all__ = ["Departure", "bound_to_agent"]

_TURN_S: Final = 0.5
_NO_AGENT: Final = (
    "torchrun's agent is gone: no process that this one comes from has loaded torch. Start it with "
    "torchrun, and unset TORCHELASTIC_RUN_ID where torchrun has not set it.\n"
)


class Departure:
    """The end of this process.

    Attributes:
        leftovers: Folders that are removed then.
    """

    def __init__(self) -> None:
        self.leftovers: list[Path] = []

    def remove_leftovers(self) -> None:
        """Remove the folders; other processes of the host may do so at the same time."""
        for folder in self.leftovers:
            shutil.rmtree(folder, ignore_errors=True)
        self.leftovers.clear()

    def leave(self, code: int) -> NoReturn:
        """End the process, from any thread and whatever the others do."""
        self.remove_leftovers()
        sys.stdout.flush()
        os._exit(code)


@cache
def bound_to_agent() -> Departure:
    """This process's end, which comes half a second after its agent's from the first call on."""
    departure = Departure()
    threading.Thread(target=_watch, args=(departure,), name="agent watch", daemon=True).start()
    return departure


def _watch(departure: Departure) -> NoReturn:
    agent = next(filter(_may_be_agent, _ancestors()), None)
    if agent is None:
        sys.stderr.write(_NO_AGENT)
    while agent in _ancestors():
        time.sleep(_TURN_S)
    departure.leave(1)


def _ancestors() -> list[int]:
    """The process that this one comes from and, where that can be seen, all that it comes from."""
    found = [os.getppid()]
    while parent := _parent(found[-1]):
        found.append(parent)
    return found


def _parent(process: int) -> int:
    """The number of another process's parent; 0 where there is none in sight."""
    with suppress(OSError):
        stat = Path(f"/proc/{process}/stat").read_text(errors="replace")
        return int(stat.rpartition(")")[2].split()[1])
    return 0


def _may_be_agent(process: int) -> bool:
    if sys.platform != "linux":
        return True
    try:
        return "libtorch" in Path(f"/proc/{process}/maps").read_text(errors="replace")
    except PermissionError:
        return process != 1  # Another user's, but not the one that orphans come to.
    except OSError:
        return False
