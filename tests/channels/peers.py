"""What the other process does in tests of two processes; imports no more than it needs."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch.distributed import FileStore

from ppll.channels.base import SlotLayout
from ppll.channels.memory import PROCESSOR
from ppll.channels.process_group import GroupReceiveEnd, GroupSendEnd
from ppll.channels.shared import SharedReceiveEnd, SharedSendEnd
from ppll.message import Kind, Message

SECRET = bytes(range(32))
LAYOUT = SlotLayout({"features": 4096, "targets": 256})
PATIENCE_S = 30.0

End = Literal["exit", "wait"]
NetworkEnd = TypeVar("NetworkEnd", GroupSendEnd, GroupReceiveEnd)


def numbered(sequence: int) -> Message:
    """A message whose tensors tell its number."""
    features = torch.full((4, 8), float(sequence))
    return Message(
        kind=Kind.TRAIN, sequence=sequence, step=sequence, tensors={"features": features}
    )


def send_and_end(path: Path, num_messages: int, end: End) -> None:
    """Send messages, then exit without closing anything, or wait to be killed."""
    sender = SharedSendEnd.connect(path, SECRET, PATIENCE_S)
    for sequence in range(num_messages):
        sender.send(numbered(sequence), PATIENCE_S)
    _end(end)


def receive_and_end(path: Path, num_messages: int, end: End) -> None:
    """Receive messages without releasing any, then exit or wait to be killed."""
    receiver = SharedReceiveEnd.listen(path, LAYOUT, num_messages, SECRET)
    receiver.accept(PATIENCE_S)
    for _ in range(num_messages):
        receiver.recv(PATIENCE_S)
    _end(end)


def double(upstream: Path, downstream: Path) -> None:
    """A stage: send twice the features on until the stop, working directly on the slot."""
    receiver = SharedReceiveEnd.listen(upstream, LAYOUT, 2, SECRET)
    sender = SharedSendEnd.connect(downstream, SECRET, PATIENCE_S)
    receiver.accept(PATIENCE_S)
    kind = Kind.TRAIN
    while kind is not Kind.STOP:
        message = receiver.recv(PATIENCE_S)
        kind = message.kind
        if kind is Kind.TRAIN:
            sender.send(message.with_tensors(features=2 * message.features), PATIENCE_S)
        else:
            sender.send(message, PATIENCE_S)
        receiver.release(message)
    sender.close()
    receiver.close()


def reach(
    folder: Path, kind: type[NetworkEnd], capacity: int, device: torch.device = PROCESSOR
) -> NetworkEnd:
    """An end of a channel over a network, which this machine is alone in."""
    store, where = FileStore(str(folder / "store"), 2), {"address": "127.0.0.1", "device": device}
    return kind(store, "edge", LAYOUT, capacity, timeout_s=PATIENCE_S, **where)


def send_over_network(folder: Path, num_messages: int, end: End) -> None:
    """Send messages, then exit without closing anything, or wait to be killed."""
    sender = reach(folder, GroupSendEnd, num_messages)
    for sequence in range(num_messages):
        sender.send(numbered(sequence), PATIENCE_S)
    (folder / "sent").touch()
    _end(end)


def receive_over_network(folder: Path, num_messages: int, end: End) -> None:
    """Receive messages without releasing any, then exit or wait to be killed."""
    receiver = reach(folder, GroupReceiveEnd, num_messages)
    for _ in range(num_messages):
        receiver.recv(PATIENCE_S)
    (folder / "received").touch()
    _end(end)


def send_from_gpu(folder: Path, num_messages: int) -> None:
    """Send messages from the first GPU, and wait to be killed."""
    sender = reach(folder, GroupSendEnd, 3, torch.device("cuda", 0))
    for sequence in range(num_messages):
        sender.send(numbered(sequence).on(sender.device), PATIENCE_S)
    signal.pause()


def announce_over_network(folder: Path) -> None:
    """Send a mark, then a message whose tensors never come, and another mark."""
    import pytest

    from tests.channels import nccl

    nccl.stand_in(pytest.MonkeyPatch())
    sender = reach(folder, GroupSendEnd, 3, nccl.GPU)
    for sequence in range(3):
        message = numbered(sequence)
        sender.send(message if sequence == 1 else message.without(["features"]), PATIENCE_S)
    signal.pause()


def _end(end: End) -> None:
    if end == "exit":
        os._exit(1)
    signal.pause()
