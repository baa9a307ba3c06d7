"""The shared channel with slots in a GPU's memory: the whole contract, and two processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ppll.channels.base import ReceiveEnd, SendEnd, SlotLayout
from ppll.channels.device_slots import ReceiverSlots, SenderSlots
from ppll.channels.shared import SharedReceiveEnd, SharedSendEnd
from ppll.message import DEVICE_ALIGNMENT, Kind, Message
from tests.channels import test_contract
from tests.channels.conftest import Start, folder, paths, start
from tests.channels.peers import End
from tests.channels.test_contract import SECRET, WAIT_S, OpenChannel
from tests.channels.test_rounds import run_rounds, see_death
from tests.gpu.waiting import nobody_waits

__all__ = ["folder", "paths", "start"]  # fixtures

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(100),
]

needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")

Ends = tuple[SharedSendEnd, SharedReceiveEnd]

# Every test of the contract runs here, too, with the fixture below: in one process, which opens
# its own slots, with tensors that lie on the GPU from the beginning.
globals().update(
    {name: test for name, test in vars(test_contract).items() if name.startswith("test_")}
)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", 0)


@pytest.fixture
def open_channel(
    paths: Iterator[Path], device: torch.device, caplog: pytest.LogCaptureFixture
) -> Iterator[OpenChannel]:
    opened: list[SendEnd | ReceiveEnd] = []

    def open_channel(
        capacity: int = 2, slot_bytes: int = 4096, poison: bool = False, to: Any = device
    ) -> Ends:
        path, layout = next(paths), SlotLayout({"features": slot_bytes})
        receiver = SharedReceiveEnd.listen(path, layout, capacity, SECRET, poison=poison, device=to)
        opened.append(receiver)
        sender = SharedSendEnd.connect(path, SECRET, WAIT_S, device=device)
        opened.insert(0, sender)
        receiver.accept(WAIT_S)
        return sender, receiver

    with device:
        yield open_channel
    for end in opened:
        end.close()
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert not said, said  # such as that it took the way through the host


def filled(sequence: int, **tensors: Any) -> Message:
    return Message(kind=Kind.TRAIN, sequence=sequence, step=sequence, tensors=tensors)


def test_slots_lie_on_the_gpu(open_channel: Any, device: torch.device) -> None:
    sender, receiver = open_channel()
    sent = {"features": torch.rand(3), "targets": torch.arange(3)}
    sender.send(filled(0, **sent), WAIT_S)
    arrived = receiver.recv(WAIT_S)
    assert isinstance(sender._slots, SenderSlots)
    assert isinstance(receiver._slots, ReceiverSlots)
    assert sender.device == device
    for tensor in arrived.tensors.values():
        assert tensor.device == device
        assert tensor.data_ptr() % DEVICE_ALIGNMENT == 0
    assert arrived.features.data_ptr() == receiver._slots.raw(0).data_ptr()


def test_no_host_waits_for_the_gpu(open_channel: Any) -> None:
    sender, receiver = open_channel()
    kept = torch.zeros(4, 256)
    batches = [torch.full((256,), float(sequence)) for sequence in range(8)]
    sender.send(filled(0, features=batches[0]), WAIT_S)  # takes the slots over
    receiver.release(receiver.recv(WAIT_S))
    with nobody_waits():
        for sequence in range(1, 5):
            sender.send(filled(sequence, features=batches[sequence]), WAIT_S)
            sender.flush()
            message = receiver.recv(WAIT_S)
            kept[sequence - 1] = message.features
            receiver.release(message)
    assert kept[:, 0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("to", ["cuda:0", pytest.param("cuda:1", marks=needs_two)])
def test_message_waits_for_what_the_sender_still_computes(open_channel: Any, to: str) -> None:
    """On the GPU: the host has long gone on, and the source is overwritten at once."""
    sender, receiver = open_channel(slot_bytes=4 << 20, to=torch.device(to))
    features = torch.zeros(1 << 20)
    for sequence in range(20):
        torch.cuda._sleep(2_000_000)  # cycles
        features.fill_(float(sequence))
        sender.send(filled(sequence, features=features), WAIT_S)
        sender.flush()
        features.fill_(-1.0)
        message = receiver.recv(WAIT_S)
        assert message.features.eq(sequence).all()
        receiver.release(message)


@pytest.mark.parametrize("to", ["cuda:0", pytest.param("cuda:1", marks=needs_two)])
def test_slot_is_not_filled_while_the_receiver_still_reads(open_channel: Any, to: str) -> None:
    sender, receiver = open_channel(capacity=1, slot_bytes=4 << 20, to=torch.device(to))
    receiving = torch.cuda.Stream(to)
    sums = []
    for sequence in range(20):
        features = torch.full((1 << 20,), float(sequence))
        sender.send(filled(sequence, features=features), WAIT_S)
        with torch.cuda.stream(receiving):
            message = receiver.recv(WAIT_S)
            torch.cuda._sleep(2_000_000)
            sums.append(message.features.double().mean())
            receiver.release(message)
    receiving.synchronize()
    assert [value.item() for value in sums] == list(range(20))


def test_memory_is_given_back(open_channel: Any, device: torch.device) -> None:
    def open_use_and_close() -> None:
        ends = open_channel(slot_bytes=32 << 20)
        ends[0].send(filled(0, features=torch.rand(100)), WAIT_S)
        ends[1].release(ends[1].recv(WAIT_S))
        torch.cuda.synchronize(device)
        for end in ends:
            end.close()

    open_use_and_close()
    before = torch.cuda.mem_get_info(device)[0]
    for _ in range(5):
        open_use_and_close()
    assert before - torch.cuda.mem_get_info(device)[0] < 64 << 20


# Two processes


@pytest.mark.processes
def test_a_thousand_rounds(start: Start, folder: Path, tmp_path: Path) -> None:
    run_rounds(start, folder, tmp_path, 1000, ("cuda:0", "cuda:0"))


@pytest.mark.processes
@needs_two
def test_rounds_from_one_gpu_to_another(start: Start, folder: Path, tmp_path: Path) -> None:
    run_rounds(start, folder, tmp_path, 200, ("cuda:0", "cuda:1"))


@pytest.mark.processes
@pytest.mark.parametrize("victim", ["sender", "receiver"])
@pytest.mark.parametrize("end", ["exit", "wait"], ids=["os._exit", "SIGKILL"])
def test_death_of_either_end_is_seen(
    start: Start, folder: Path, tmp_path: Path, victim: str, end: End
) -> None:
    see_death(start, folder / "socket", tmp_path, victim, end, "cuda:0")
