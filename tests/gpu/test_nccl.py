"""The channel between GPUs of different hosts; two GPUs of one stand for those."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed import HashStore

from ppll.channels.base import SlotLayout
from ppll.channels.process_group import GroupReceiveEnd, GroupSendEnd
from ppll.errors import ChannelClosed
from ppll.message import DEVICE_ALIGNMENT, Kind, Message
from tests.channels import peers
from tests.channels.conftest import Start, start
from tests.channels.test_contract import LAYOUTS
from tests.gpu.waiting import nobody_waits

__all__ = ["start"]  # a fixture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.device_count() < 2, reason="NCCL takes no two ranks on one GPU: needs two GPUs"
    ),
    pytest.mark.timeout(100),
]

WAIT_S = peers.PATIENCE_S
ONE, OTHER = torch.device("cuda", 0), torch.device("cuda", 1)
Ends = tuple[GroupSendEnd, GroupReceiveEnd]


@pytest.fixture
def open_channel() -> Iterator[Callable[..., Ends]]:
    opened: list[GroupSendEnd | GroupReceiveEnd] = []

    def open_channel(capacity: int = 2, slot_bytes: int = 4096) -> Ends:
        store, layout = HashStore(), SlotLayout({"features": slot_bytes})
        where = {"address": "127.0.0.1", "timeout_s": WAIT_S}
        with ThreadPoolExecutor() as pool:
            made = pool.submit(GroupSendEnd, store, "edge", layout, capacity, device=ONE, **where)
            receiver = GroupReceiveEnd(
                store, "edge", layout, capacity, device=OTHER, poison=True, **where
            )
            sender = made.result(WAIT_S)
        opened.extend((sender, receiver))
        return sender, receiver

    yield open_channel
    for end in opened:
        end.close()


def numbered(sequence: int, features: Tensor) -> Message:
    return Message(
        kind=Kind.TRAIN, sequence=sequence, step=sequence, tensors={"features": features}
    )


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_features_arrive_on_the_other_gpu(
    open_channel: Callable[..., Ends], make: Callable[[], Tensor]
) -> None:
    sender, receiver = open_channel()
    sent = make().to(ONE)
    sender.send(numbered(0, sent), WAIT_S)
    arrived = receiver.recv(WAIT_S).features
    assert arrived.device == OTHER
    assert arrived.stride() == sent.stride()
    assert arrived.data_ptr() % DEVICE_ALIGNMENT == 0
    assert torch.equal(arrived.cpu(), sent.cpu())


def test_messages_stay_whole_where_either_gpu_dawdles(open_channel: Callable[..., Ends]) -> None:
    sender, receiver = open_channel(capacity=2, slot_bytes=4 << 20)
    features = torch.zeros(1 << 20, device=ONE)
    means = []
    for sequence in range(40):
        torch.cuda._sleep(2_000_000 * (sequence % 3))
        features.fill_(float(sequence))
        sender.send(numbered(sequence, features), WAIT_S)
        sender.flush()
        features.fill_(-1.0)
        message = receiver.recv(WAIT_S)
        with torch.cuda.device(OTHER):
            torch.cuda._sleep(2_000_000 * (sequence % 2))
            means.append(message.features.double().mean())
            receiver.release(message)
    assert [mean.item() for mean in means] == list(range(40))


def test_no_sender_waits_for_its_gpu(open_channel: Callable[..., Ends]) -> None:
    sender, receiver = open_channel(capacity=4)
    batches = [torch.full((256,), float(number), device=ONE) for number in range(4)]
    with nobody_waits():
        for sequence, batch in enumerate(batches):
            sender.send(numbered(sequence, batch), WAIT_S)
            sender.flush()
    for sequence in range(4):
        message = receiver.recv(WAIT_S)
        assert message.features.eq(sequence).all()
        receiver.release(message)


def test_larger_messages_than_announced_arrive(open_channel: Callable[..., Ends]) -> None:
    sender, receiver = open_channel(slot_bytes=256)
    for sequence, length in enumerate([10, 5000, 0, 64, 70_000]):
        sent = torch.rand(length, device=ONE)
        sender.send(numbered(sequence, sent), WAIT_S)
        message = receiver.recv(WAIT_S)
        assert torch.equal(message.features.cpu(), sent.cpu())
        receiver.release(message)


@pytest.mark.processes
@pytest.mark.parametrize("num_messages", [1, 3])
def test_a_killed_sender_is_seen(start: Start, tmp_path: Path, num_messages: int) -> None:
    process = start(peers.send_from_gpu, tmp_path, num_messages)
    receiver = peers.reach(tmp_path, GroupReceiveEnd, 3, OTHER)
    for sequence in range(num_messages):
        assert receiver.recv(WAIT_S).features.eq(sequence).all()
    process.kill()
    with pytest.raises(ChannelClosed, match="the sender is gone"):
        receiver.recv(WAIT_S)
    receiver.close()
