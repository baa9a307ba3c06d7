"""The process that ranks are forked from, with torch already imported (this file imports none)."""

from __future__ import annotations

import os
import signal
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path

__all__ = ["LAUNCHER_VARIABLE", "START_METHOD", "temporary_folder", "warm_up"]

START_METHOD = "forkserver"
LAUNCHER_VARIABLE = "PPLL_LAUNCHER"
"""Environment variable that tells the fork server who started it."""


def warm_up() -> None:
    """Start the fork server, which imports torch while the caller goes on with its own work."""
    # The first optimizer of a process imports torch._dynamo, which takes as long as torch itself.
    forkserver.set_forkserver_preload(
        ["ppll.launching.fork_server_guard", "torch._dynamo", "ppll.launching.rank_process"]
    )
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
    # A Ctrl-C goes to all processes of a terminal and would end the importing server with a
    # traceback; so it inherits a blocked SIGINT. To start the tracker unblocks it: that is first.
    resource_tracker.ensure_running()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def temporary_folder() -> Path:
    """Where this process and its fork server have their socket."""
    return Path(util.get_temp_dir())
