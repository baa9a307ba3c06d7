"""PyTorch's elastic agent on one host: it starts, restarts and collects the ranks.

The agent runs in a thread, so the main thread is free to watch the ranks and to hear signals. Its
rendezvous is a store in this process's memory, so no port is opened.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import Any

from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
)

from ppll.fork_server import START_METHOD

__all__ = ["Agent"]

_MONITOR_INTERVAL_S = 0.05
_COLLECTING_S = 5.0
_LOGGERS = ("torch.distributed.elastic", "torch.multiprocessing", "torchelastic-events-null")


class _OneHost(RendezvousHandler):
    """A rendezvous of this process with itself."""

    def get_backend(self) -> str:
        return "one-host"

    def next_rendezvous(self) -> RendezvousInfo:
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo("localhost", 0))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nobody else could join."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return f"ppll-{os.getpid()}"

    def shutdown(self) -> bool:
        return True


class Agent:
    """Runs ``entrypoint(*args)`` in ``num_ranks`` processes; RANK tells each who it is.

    Args:
        entrypoint: A function that can be imported.
        args: Its arguments, the same for all; they are pickled.
        num_ranks: Processes.
        folder: Private folder for the agent's own files.
    """

    def __init__(
        self, entrypoint: Callable[..., Any], args: tuple[Any, ...], num_ranks: int, folder: Path
    ) -> None:
        # Its reports come late and name the rank that noticed; ours replace them.
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        spec = WorkerSpec(
            role="rank",
            local_world_size=num_ranks,
            entrypoint=entrypoint,
            args=args,
            rdzv_handler=_OneHost(),
            max_restarts=0,
            monitor_interval=_MONITOR_INTERVAL_S,
        )
        self._agent = LocalElasticAgent(
            spec, DefaultLogsSpecs(log_dir=str(folder)), start_method=START_METHOD
        )
        self._thread = threading.Thread(target=self._run, name="elastic agent", daemon=True)
        self.error: BaseException | None = None
        self._is_over = False

    def start(self) -> None:
        """Begin to start the ranks."""
        self._thread.start()

    def is_running(self) -> bool:
        """Whether any rank may still be there."""
        processes = self._processes()
        if processes and not self._is_over and len(self.ended_ranks()) == len(processes):
            # It collects exit codes now, or waits for ever: for one that was killed as it ended.
            self._thread.join(_COLLECTING_S)
            self._is_over = True
        return self._thread.is_alive() and not self._is_over

    def join(self, timeout_s: float) -> None:
        """Wait until all ranks are gone, or the time is over."""
        self._thread.join(timeout_s)

    def ended_ranks(self) -> list[int]:
        """Ranks whose process is gone."""
        sentinels = {p.sentinel: rank for rank, p in enumerate(self._processes())}
        return [sentinels[s] for s in connection.wait(list(sentinels), timeout=0)]

    def kill(self) -> None:
        """End all ranks at once, also those that have not said anything yet."""
        ended = self.ended_ranks()
        for rank, process in enumerate(self._processes()):
            if rank not in ended:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)

    def exit_codes(self) -> dict[int, int]:
        """How every rank ended, negative for the number of a signal; only when none is left."""
        codes = {rank: p.exitcode for rank, p in enumerate(self._processes())}
        return {rank: code for rank, code in codes.items() if code is not None}

    def _processes(self) -> list[Any]:
        # torch keeps the processes to itself and reports one failure only, maybe a neighbour's.
        context: Any = self._agent._pcontext
        return list(context._pc.processes) if context is not None and context._pc else []

    def _run(self) -> None:
        try:
            self._agent.run()
        except Exception as error:
            self.error = error
