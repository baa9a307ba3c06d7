"""The process that ranks are forked from, with torch already imported (this file imports none)."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import Future
from functools import cache
from multiprocessing import active_children, forkserver, process, resource_tracker, util
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Final

__all__ = [
    "LAUNCHER_VARIABLE",
    "SIGNALS",
    "START_METHOD",
    "leave_behind",
    "temporary_folder",
    "warm_up",
]

START_METHOD = "forkserver"
LAUNCHER_VARIABLE = "PPLL_LAUNCHER"
"""Environment variable that tells the fork server who started it."""
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
"""For the launcher only: a terminal, ``timeout``, systemd and Slurm send them to all processes."""


def warm_up() -> None:
    """Start the fork server, which imports torch while the caller goes on with its own work."""
    # The first optimizer of a process imports torch._dynamo, which takes as long as torch itself.
    forkserver.set_forkserver_preload(
        ["ppll.launching.fork_server_guard", "torch._dynamo", "ppll.launching.rank_process"]
    )
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
    done: Future[None] = Future()
    _orders(os.getpid()).put(done)
    done.result()


@cache
def _orders(launcher: int) -> SimpleQueue[Future[None]]:  # noqa: ARG001
    """What a thread that lasts as long as the process is asked to do.

    Linux ends the server with the thread that it came from. Whoever calls ``fit`` in a thread may
    end before another's run does, and so may the main thread, which executors end with.
    """
    orders: SimpleQueue[Future[None]] = SimpleQueue()
    threading.Thread(target=_follow, args=(orders,), name="fork server", daemon=True).start()
    return orders


def _follow(orders: SimpleQueue[Future[None]]) -> None:
    while True:
        done = orders.get()
        try:
            _start()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)


def _start() -> None:
    # Both signals would end the importing server, so it inherits them blocked. To start the
    # tracker unblocks them: that is first.
    resource_tracker.ensure_running()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def temporary_folder() -> Path:
    """Where this process and its fork server have their socket."""
    return Path(util.get_temp_dir())


def leave_behind() -> None:
    """Let this process end while others that the fork server has started are there: Python waits
    for all that it knows of, without end."""
    known = process._children  # type: ignore[attr-defined]
    known.difference_update(c for c in active_children() if isinstance(c, ForkServerProcess))
