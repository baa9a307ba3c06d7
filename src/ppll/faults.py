"""Failures that a test asks for, at one point of one rank."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from ppll.status import Activity, Monitor

__all__ = ["FAULT_VARIABLE", "Fault", "InjectedFault", "injected_monitor"]

FAULT_VARIABLE: Final = "PPLL_FAULT"
"""Environment variable from which ranks read the failure that a test wants."""


class InjectedFault(RuntimeError):
    """The error that a test asked for."""


@dataclass(frozen=True)
class Fault:
    """A failure at one point of one rank, for tests.

    Attributes:
        rank: Who fails.
        step: When: training batches that have reached the rank.
        activity: Where, by name: ``"FORWARD"`` and ``"SEND"`` while it trains, ``"RECEIVE"``,
            ``"LEARN"``, ``"SAVE"``, ``"EVALUATE"``; or ``"WRITE"``, in the thread that writes a
            checkpoint.
        how: Raise an error, leave the process, be killed, stand still, or be stopped.
        generation: Only in this start of the run, counted from 0; in every one without.
        stamp: A file that gets the time of the failure, by the machine's monotonic clock.
    """

    rank: int
    step: int
    activity: str = "LEARN"
    how: Literal["raise", "exit", "kill", "hang", "stop"] = "raise"
    generation: int | None = None
    stamp: str | None = None

    def to_environment(self) -> dict[str, str]:
        """The environment in which ranks carry the failure out."""
        return {FAULT_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> Fault | None:
        """The failure that the environment asks for, if any."""
        text = os.environ.get(FAULT_VARIABLE)
        return cls(**json.loads(text)) if text else None

    def is_for(self, rank: int, generation: int) -> bool:
        """Whether a rank fails in a start of the run."""
        return self.rank == rank and self.generation in (None, generation)

    def strike_at_write(self, rank: int, generation: int, step: int) -> None:
        """Fail if this is the point, in the thread that writes a checkpoint."""
        if self.activity == "WRITE" and self.step == step and self.is_for(rank, generation):
            self.strike()

    def strike(self) -> None:
        """Fail."""
        if self.stamp is not None:
            Path(self.stamp).write_text(str(time.monotonic()), encoding="utf-8")
        match self.how:
            case "raise":
                raise InjectedFault(f"asked for at step {self.step}")
            case "exit":
                os._exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "hang":
                while True:
                    time.sleep(60)


class _FaultyMonitor(Monitor):
    """A monitor that strikes when its rank gets to the point of a fault."""

    def __init__(self, monitor: Monitor, fault: Fault) -> None:
        super().__init__(monitor.page)
        self._fault = fault

    def enter(self, activity: Activity, *, block: int = -1, step: int | None = None) -> None:
        super().enter(activity, block=block, step=step)
        if activity.name == self._fault.activity and self.status.step == self._fault.step:
            self._fault.strike()


def injected_monitor(fault: Fault | None, generation: int, rank: int, monitor: Monitor) -> Monitor:
    """The rank's monitor, or one that strikes where the fault says."""
    if fault is None or not fault.is_for(rank, generation):
        return monitor
    return _FaultyMonitor(monitor, fault)
