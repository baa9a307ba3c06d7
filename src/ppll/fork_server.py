"""The process that ranks are forked from, with torch already imported (this file imports none)."""

from __future__ import annotations

from multiprocessing import forkserver

__all__ = ["START_METHOD", "warm_up"]

START_METHOD = "forkserver"


def warm_up() -> None:
    """Start the fork server, which imports torch while the caller goes on with its own work."""
    # The first optimizer of a process imports torch._dynamo, which takes as long as torch itself.
    forkserver.set_forkserver_preload(["torch._dynamo", "ppll.rank_process"])
    forkserver.ensure_running()
