"""Short lives of a channel between two processes on any device; each ends with a line in a file."""

from __future__ import annotations

import os
import random
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ppll.channels.base import SlotLayout
from ppll.channels.shared import SharedReceiveEnd, SharedSendEnd
from ppll.errors import ChannelClosed
from ppll.message import Kind, Message
from tests.channels.peers import End

SECRET = bytes(range(32))
LAYOUT = SlotLayout({"features": 16 << 10, "targets": 512})
PATIENCE_S = 30.0
DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64)


def told(log: Path, function: Callable[..., None], *arguments: Any) -> None:
    """Run a function; ``log`` then says "done", or why not."""
    try:
        function(*arguments)
    except BaseException:
        log.write_text(traceback.format_exc(), encoding="utf-8")
        os._exit(1)
    log.write_text("done", encoding="utf-8")


def messages(number: int, device: torch.device) -> Iterator[Message]:
    """The messages of a round: ragged, of several types, one larger than announced, a mark."""
    chance = random.Random(number)
    for sequence in range(5):
        shape = (chance.randrange(9), 3, chance.randrange(1, 6), chance.randrange(1, 6))
        if sequence == number % 5:
            shape = (40, 3, 20, 20)
        features = torch.arange(
            number, number + torch.Size(shape).numel(), device=device
        ).remainder(97)
        features = features.view(shape).to(chance.choice(DTYPES))
        if chance.random() < 0.3:
            features = features.to(memory_format=torch.channels_last)
        targets = torch.full((shape[0],), sequence, device=device)
        tensors: dict[str, Tensor] = {"features": features, "targets": targets}
        yield Message(kind=Kind.TRAIN, sequence=sequence, step=sequence, tensors=tensors)
    yield Message(kind=Kind.STOP, sequence=5, step=5)


def send_rounds(folder: Path, num_rounds: int, name: str) -> None:
    """Send the messages of every round over a channel of its own."""
    device = torch.device(name)
    for number in range(num_rounds):
        sender = SharedSendEnd.connect(folder / str(number), SECRET, PATIENCE_S, device=device)
        for message in messages(number, device):
            sender.send(message, PATIENCE_S)
            sender.flush()
            for tensor in message.tensors.values():
                tensor.zero_()  # nobody may see this
        sender.close()


def receive_rounds(folder: Path, num_rounds: int, name: str) -> None:
    """Check the messages of every round, and where they lie."""
    device = torch.device(name)
    for number in range(num_rounds):
        path, capacity = folder / str(number), 1 + number % 3
        receiver = SharedReceiveEnd.listen(
            path, LAYOUT, capacity, SECRET, poison=True, device=device
        )
        receiver.accept(PATIENCE_S)
        for expected in messages(number, device):
            arrived = receiver.recv(PATIENCE_S)
            check(arrived, expected, f"round {number}, message {expected.sequence}")
            receiver.release(arrived)
        try:
            receiver.recv(PATIENCE_S)
        except ChannelClosed:
            assert receiver.statistics.oversized == 1
        receiver.close()


def check(arrived: Message, expected: Message, where: str) -> None:
    """Compare two messages to the bit."""
    assert (arrived.kind, arrived.sequence) == (expected.kind, expected.sequence), where
    assert list(arrived.tensors) == list(expected.tensors), where
    for name, tensor in expected.tensors.items():
        there = arrived.tensors[name]
        assert (there.dtype, there.device) == (tensor.dtype, tensor.device), where
        assert (there.shape, there.stride()) == (tensor.shape, tensor.stride()), where
        assert torch.equal(there, tensor), f"{where}: {name} is {there.flatten()[:8]}"


def send_and_end(path: Path, name: str, end: End, has_sent: Path) -> None:
    """Send three messages, then exit without closing anything, or wait to be killed."""
    device = torch.device(name)
    sender = SharedSendEnd.connect(path, SECRET, PATIENCE_S, device=device)
    for number, message in zip(range(3), messages(1, device), strict=False):
        assert number == message.sequence
        sender.send(message, PATIENCE_S)
    _end(device, end, has_sent)


def receive_and_end(path: Path, name: str, end: End, has_received: Path) -> None:
    """Receive two messages without releasing any, then exit or wait to be killed."""
    device = torch.device(name)
    receiver = SharedReceiveEnd.listen(path, LAYOUT, 2, SECRET, device=device)
    receiver.accept(PATIENCE_S)
    for _ in range(2):
        receiver.recv(PATIENCE_S)
    _end(device, end, has_received)


def _end(device: torch.device, end: End, mark: Path) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    mark.touch()
    if end == "exit":
        os._exit(0)
    signal.pause()


def outlive_the_sender(path: Path, name: str, may_die: Path) -> None:
    """Get what was sent, then hear soon that nothing more comes."""
    device = torch.device(name)
    receiver = SharedReceiveEnd.listen(path, LAYOUT, 3, SECRET, device=device)
    receiver.accept(PATIENCE_S)
    for _, expected in zip(range(3), messages(1, device), strict=False):
        check(receiver.recv(PATIENCE_S), expected, "before the end")
    may_die.touch()
    _expect_closed(lambda: receiver.recv(PATIENCE_S))
    receiver.close()


def outlive_the_receiver(path: Path, name: str, may_die: Path) -> None:
    """Fill the channel, then hear soon that nobody takes more."""
    device = torch.device(name)
    sender = SharedSendEnd.connect(path, SECRET, PATIENCE_S, device=device)
    *sent, last = list(messages(1, device))[:3]
    for message in sent:
        sender.send(message, PATIENCE_S)
    may_die.touch()
    _expect_closed(lambda: sender.send(last, PATIENCE_S))
    sender.close()


def _expect_closed(wait: Callable[[], object]) -> None:
    try:
        wait()
    except ChannelClosed:
        return
    raise AssertionError("the other end is dead, but something came of it")
