"""The processes that ``torchrun`` has started, as one of them sees them.

They know each other through the elastic agent's store. What they tell each other is JSON, so
nothing that comes from another host is ever unpickled.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Self

from torch.distributed.rendezvous import rendezvous

from ppll.errors import ChannelError, ChannelTimeout

__all__ = ["World"]

_JOIN_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True)
class World:
    """All processes of a run, and which of them this is.

    Attributes:
        rank: Position of this process, which is that of its stage.
        size: Processes.
        local_rank: Position among those of this host.
        local_size: Processes of this host, whose ranks follow each other.
        host_index: Position of this host.
        host_name: What its users call it, with the address that the others reach it by.
        address: That address.
        num_restarts: How often the agents have started all processes again.
        store: What all processes can reach, a ``torch.distributed.Store``. One thread's wait keeps
            others waiting, so each has a clone.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    host_index: int
    host_name: str
    address: str
    num_restarts: int
    store: Any = field(repr=False)

    @classmethod
    def join(cls) -> Self:
        """Meet the other processes in the agents' store.

        Raises:
            ChannelError: It cannot be reached.
        """
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            timeout = timedelta(seconds=_JOIN_TIMEOUT_S)
            store, rank, size = next(rendezvous("env://", timeout=timeout))
            address = _address_towards(host, port)
        except (OSError, RuntimeError, ValueError) as error:
            raise ChannelError(f"cannot reach torchrun's store at {host}:{port}: {error}") from None
        return cls(
            rank=rank,
            size=size,
            local_rank=int(os.environ["LOCAL_RANK"]),
            local_size=int(os.environ["LOCAL_WORLD_SIZE"]),
            host_index=int(os.environ["GROUP_RANK"]),
            host_name=f"{socket.gethostname()} ({address})",
            address=address,
            num_restarts=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
            store=store,
        )

    @property
    def speaks(self) -> bool:
        """Whether this process is the one of its host that people read."""
        return self.local_rank == 0

    def is_here(self, rank: int) -> bool:
        """Whether another process is on this host."""
        first = self.rank - self.local_rank
        return first <= rank < first + self.local_size

    def publish(self, key: str, value: Any) -> None:
        """Tell all processes something that JSON can hold."""
        self.store.set(key, json.dumps(value))

    def read(self, key: str, timeout_s: float) -> Any:
        """What some process publishes under a name; wait until it does.

        Raises:
            ChannelTimeout: It did not in time.
        """
        try:
            self.store.wait([key], timedelta(seconds=timeout_s))
        except RuntimeError as error:
            raise ChannelTimeout(
                f"waited {timeout_s:g} s for {key!r} of another process: {error!s:.200}"
            ) from None
        return json.loads(self.store.get(key))

    def gather(self, name: str, value: Any, timeout_s: float) -> list[Any]:
        """Tell all processes something, and hear it from each of them, in order of rank.

        Raises:
            ChannelTimeout: One did not speak in time.
        """
        self.publish(f"{name}/{self.rank}", value)
        return [self.read(f"{name}/{rank}", timeout_s) for rank in range(self.size)]


def _address_towards(host: str, port: int) -> str:
    """The address of this host by which another one would answer."""
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)  # Nothing is sent.
        found: str = probe.getsockname()[0]
        return found
