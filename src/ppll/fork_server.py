"""The process that ranks are forked from, with torch already imported (this file imports none)."""

from __future__ import annotations

from multiprocessing import forkserver, util
from pathlib import Path

__all__ = ["START_METHOD", "temporary_folder", "warm_up"]

START_METHOD = "forkserver"


def warm_up() -> None:
    """Start the fork server, which imports torch while the caller goes on with its own work."""
    # The first optimizer of a process imports torch._dynamo, which takes as long as torch itself.
    forkserver.set_forkserver_preload(
        ["ppll.fork_server_guard", "torch._dynamo", "ppll.rank_process"]
    )
    forkserver.ensure_running()


def temporary_folder() -> Path:
    """Where this process and its fork server have their socket."""
    return Path(util.get_temp_dir())
