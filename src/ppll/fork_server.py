"""The process that ranks are forked from, with torch already imported (this file imports none)."""

from __future__ import annotations

import os
from multiprocessing import forkserver, util
from pathlib import Path

__all__ = ["LAUNCHER_VARIABLE", "START_METHOD", "temporary_folder", "warm_up"]

START_METHOD = "forkserver"
LAUNCHER_VARIABLE = "PPLL_LAUNCHER"
"""Environment variable that tells the fork server who started it."""


def warm_up() -> None:
    """Start the fork server, which imports torch while the caller goes on with its own work."""
    # The first optimizer of a process imports torch._dynamo, which takes as long as torch itself.
    forkserver.set_forkserver_preload(
        ["ppll.fork_server_guard", "torch._dynamo", "ppll.rank_process"]
    )
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
    forkserver.ensure_running()


def temporary_folder() -> Path:
    """Where this process and its fork server have their socket."""
    return Path(util.get_temp_dir())
