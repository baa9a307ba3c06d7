"""The processes that ``torchrun`` has started, as one of them sees them.

They know each other through the elastic agent's store. What they tell each other is JSON, so
nothing that comes from another host is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Self

from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from ppll.errors import ChannelError, ChannelTimeout
from ppll.torchrun import store_address

__all__ = ["World", "name_of_start"]

_JOIN_TIMEOUT_S: Final = 60.0
_TURN_S: Final = 0.05
_LOOKS_PER_S: Final = 2000
"""What all processes together may ask of the store while they wait."""


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
        store: What all processes of this start can reach, a ``torch.distributed.Store``. One
            thread's wait keeps others waiting, so each has a clone.
        lasting: The same without a name for this start: what earlier ones left is there, too.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    host_index: int
    host_name: str
    address: str
    store: Any = field(repr=False)
    lasting: Any = field(repr=False)

    @classmethod
    def join(cls) -> Self:
        """Meet the other processes in the agents' store.

        Raises:
            ChannelError: It cannot be reached.
        """
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            timeout = timedelta(seconds=_JOIN_TIMEOUT_S)
            lasting, rank, size = next(rendezvous("env://", timeout=timeout))
            address = _address_towards(host, port)
            store = PrefixStore(name_of_start(lasting, rank, size), lasting)
        except (OSError, RuntimeError, ValueError) as error:
            address = store_address()
            raise ChannelError(f"cannot reach torchrun's store at {address}: {error}") from None
        return cls(
            rank=rank,
            size=size,
            local_rank=int(os.environ["LOCAL_RANK"]),
            local_size=int(os.environ["LOCAL_WORLD_SIZE"]),
            host_index=int(os.environ["GROUP_RANK"]),
            host_name=f"{socket.gethostname()} ({address})",
            address=address,
            store=store,
            lasting=lasting,
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

    def read(self, key: str, timeout_s: float = math.inf) -> Any:
        """What some process publishes under a name; wait until it does.

        Signals are heard meanwhile.

        Raises:
            ChannelTimeout: It did not in time.
        """
        self._wait_for([key], timeout_s)
        return json.loads(self.store.get(key))

    def collect(self, name: str, value: Any, timeout_s: float = math.inf) -> list[Any]:
        """Tell the first process something; what all tell, in order of rank, in the first one.

        The others get an empty list and do not wait. N processes make N + 2 requests.

        Raises:
            ChannelTimeout: One did not speak in time.
        """
        keys = self._keys(name)
        self.publish(keys[self.rank], value)
        if self.rank:
            return []
        self._wait_for(keys, timeout_s, of=keys)
        return [json.loads(content) for content in self.store.multi_get(keys)]

    def meet(self, name: str, timeout_s: float = math.inf) -> None:
        """Wait until all processes have come to a place; 2 N + 2 requests of N processes.

        Raises:
            ChannelTimeout: One did not come in time.
        """
        self.collect(name, True, timeout_s)
        if self.rank:
            self._wait_for([f"{name}/all"], timeout_s, of=self._keys(name))
        else:
            self.publish(f"{name}/all", True)

    def _keys(self, name: str) -> list[str]:
        return [f"{name}/{rank}" for rank in range(self.size)]

    def _wait_for(self, keys: list[str], timeout_s: float, of: Sequence[str] = ()) -> None:
        """Wait until all keys are there; the first that is not, of these, is named if not."""
        deadline = time.monotonic() + timeout_s
        while not self.store.check(keys):
            if time.monotonic() > deadline:
                key = next((k for k in of if not self.store.check([k])), keys[0])
                raise ChannelTimeout(f"waited {timeout_s:g} s for {key!r} of another process.")
            time.sleep(_turn_s(self.size))


def _turn_s(num_processes: int) -> float:
    """Seconds between two looks into the store, which answers one process after the other."""
    return max(_TURN_S, num_processes / _LOOKS_PER_S)


def _address_towards(host: str, port: int) -> str:
    """The address of this host by which another one would answer."""
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)  # Nothing is sent.
        found: str = probe.getsockname()[0]
        return found


def name_of_start(store: Any, rank: int, size: int) -> str:
    """A name that all processes of this start know and no earlier start has had.

    The agents' store outlives a start and what it wrote, so every process shows a fresh token; the
    first names the start and lists the tokens that it saw, until each finds its own.
    """
    mine, deadline = secrets.token_hex(8), time.monotonic() + _JOIN_TIMEOUT_S
    store.set(f"hello/{rank}", mine)
    while time.monotonic() < deadline:
        if rank == 0 and (name := _named_by_first(store, size)) is not None:
            return name
        if rank > 0 and (name := _found_by_other(store, rank, mine)) is not None:
            return name
        time.sleep(_turn_s(size))
    raise RuntimeError(f"not all {size} processes came within {_JOIN_TIMEOUT_S:g} s")


def _named_by_first(store: Any, size: int) -> str | None:
    """Name the start; none while a process has not found itself in it."""
    hellos = [f"hello/{rank}" for rank in range(size)]
    if not store.check(hellos):
        return None
    tokens = [token.decode() for token in store.multi_get(hellos)]
    # Short, since every key begins with it.
    name = hashlib.sha256("-".join(tokens).encode()).hexdigest()[:32]
    store.set("start", json.dumps({"name": name, "tokens": tokens}))
    if not store.check([f"{name}/found/{rank}" for rank in range(1, size)]):
        return None
    store.set(f"{name}/begun", "1")
    return name


def _found_by_other(store: Any, rank: int, mine: str) -> str | None:
    """The start's name, if this process is in it and the first knows that all are."""
    if not store.check(["start"]):
        return None
    start = json.loads(store.get("start"))
    name: str = start["name"]
    if len(start["tokens"]) <= rank or start["tokens"][rank] != mine:
        return None
    store.set(f"{name}/found/{rank}", "1")
    return name if store.check([f"{name}/begun"]) else None
