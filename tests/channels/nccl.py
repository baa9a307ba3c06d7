"""What stands in for NCCL where there is no GPU: bytes pass within the process, when they may."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import pytest
import torch
from torch import Tensor
from torch.distributed import Store

from ppll.channels import nccl_link
from ppll.channels.group_link import SENDER

GPU = torch.device("cpu", 0)
"""The processor by another name, which passes for a GPU here."""


class Side:
    stream = None

    @contextmanager
    def behind_caller(self) -> Iterator[None]:
        yield

    def hold_caller(self) -> None:
        pass

    def is_over(self) -> bool:
        return True


class Filled:
    """Over when a message has come into its slot, or the link was given up."""

    def __init__(self, wire: SimpleQueue[Tensor | None], target: Tensor) -> None:
        self._wire, self._target = wire, target

    def synchronize(self) -> None:
        content = self._wire.get()
        if content is None:
            self._wire.put(None)  # for who waits next
        self._target.copy_(torch.full_like(self._target, 0xAB) if content is None else content)


class StandIn:
    """``nccl_link.NcclLink`` over a queue."""

    device = GPU

    def __init__(self, wire: SimpleQueue[Tensor | None]) -> None:
        self.side = Side()
        self._wire = wire
        self.is_given_up = threading.Event()

    def reserve(self, slot_bytes: int, num_slots: int) -> list[Tensor]:
        return [torch.zeros(slot_bytes, dtype=torch.uint8) for _ in range(num_slots)]

    def event(self) -> None:
        return None

    def record(self, event: None) -> None:
        pass

    def send(self, content: Tensor) -> None:
        self._wire.put(content.clone())

    def receive(self, content: Tensor, freed: None) -> Filled:
        return Filled(self._wire, content)

    def give_up(self, after_s: float = 0.0) -> None:
        self.is_given_up.set()
        self._wire.put(None)

    def close(self) -> None:
        pass


_wires: dict[bytes, SimpleQueue[Tensor | None]] = {}
_numbers = itertools.count()


def connect(store: Store, name: str, rank: int, device: torch.device, timeout_s: float) -> StandIn:
    """``nccl_link.connect`` between two ends in this process; nothing comes from another one."""
    if rank == SENDER:
        number = f"{os.getpid()} {next(_numbers)}".encode()
        wire = _wires[number] = SimpleQueue()
        store.set("wire", number)
        return StandIn(wire)
    return StandIn(_wires.pop(store.get("wire"), SimpleQueue()))


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ends on ``GPU`` find it."""
    monkeypatch.setattr(nccl_link, "connect", connect)
    monkeypatch.setattr(nccl_link, "_is_available", lambda: True)
