"""What ``torchrun`` tells the processes that it starts (no torch)."""

from __future__ import annotations

import os
from typing import Final

__all__ = [
    "is_first_process",
    "num_restarts",
    "speaks_for_its_host",
    "started_by_torchrun",
    "starts_again",
    "store_address",
]

_STARTED: Final = "TORCHELASTIC_RUN_ID"


def started_by_torchrun() -> bool:
    """Whether this process is one of several that ``torchrun`` has started."""
    return _STARTED in os.environ


def speaks_for_its_host() -> bool:
    """Whether people read what this process prints: all that torchrun starts have one terminal."""
    return not started_by_torchrun() or os.environ.get("LOCAL_RANK") == "0"


def is_first_process() -> bool:
    """Whether this process is the first of all, or the only one."""
    return not started_by_torchrun() or os.environ.get("RANK") == "0"


def num_restarts() -> int:
    """How often this host's agent has started its processes again after a failure."""
    return int(os.environ["TORCHELASTIC_RESTART_COUNT"])


def starts_again() -> bool:
    """Whether this host's agent starts its processes once more where one fails."""
    return num_restarts() < int(os.environ["TORCHELASTIC_MAX_RESTARTS"])


def store_address() -> str:
    """Where the processes' store is: at torchrun's agent on the host of rank 0."""
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
