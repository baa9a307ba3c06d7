"""The contract of a channel, which every transport keeps: a new one is an entry of TRANSPORTS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed import HashStore

from ppll.channels.base import ReceiveEnd, SendEnd, SlotLayout
from ppll.channels.local import local_channel
from ppll.channels.memory import PROCESSOR
from ppll.channels.process_group import GroupReceiveEnd, GroupSendEnd
from ppll.channels.shared import SharedReceiveEnd, SharedSendEnd
from ppll.errors import ChannelClosed, ChannelError, ChannelTimeout, ProtocolError
from ppll.message import ALIGNMENT, Kind, Message
from tests.channels import nccl

WAIT_S = 20.0  # what nobody waits for unless something is broken
SECRET = bytes(32)

Ends = tuple[SendEnd, ReceiveEnd]
OpenChannel = Callable[..., Ends]


def open_local(path: Path, capacity: int, layout: SlotLayout, poison: bool) -> Ends:
    return local_channel(capacity, poison=poison)


def open_shared(path: Path, capacity: int, layout: SlotLayout, poison: bool) -> Ends:
    receiver = SharedReceiveEnd.listen(path, layout, capacity, SECRET, poison=poison)
    sender = SharedSendEnd.connect(path, SECRET, WAIT_S)
    receiver.accept(WAIT_S)
    return sender, receiver


def open_group(path: Path, capacity: int, layout: SlotLayout, poison: bool) -> Ends:
    return open_between_hosts(PROCESSOR, capacity, layout, poison)


def open_nccl(path: Path, capacity: int, layout: SlotLayout, poison: bool) -> Ends:
    with pytest.MonkeyPatch.context() as monkeypatch:
        nccl.stand_in(monkeypatch)
        return open_between_hosts(nccl.GPU, capacity, layout, poison)


def open_between_hosts(
    device: torch.device, capacity: int, layout: SlotLayout, poison: bool
) -> Ends:
    store, where = HashStore(), {"address": "127.0.0.1", "timeout_s": WAIT_S, "device": device}
    with ThreadPoolExecutor() as pool:
        sender = pool.submit(GroupSendEnd, store, "edge", layout, capacity, **where)
        receiver = GroupReceiveEnd(store, "edge", layout, capacity, poison=poison, **where)
        return sender.result(WAIT_S), receiver


TRANSPORTS = {
    "local": open_local,
    "shared": open_shared,
    "process_group": open_group,
    "nccl": open_nccl,
}


@pytest.fixture(params=TRANSPORTS)
def open_channel(request: pytest.FixtureRequest, paths: Iterator[Path]) -> Iterator[OpenChannel]:
    """Opens channels of one transport; all are closed after the test."""
    opened: list[SendEnd | ReceiveEnd] = []

    def open_channel(capacity: int = 2, slot_bytes: int = 4096, poison: bool = False) -> Ends:
        layout = SlotLayout({"features": slot_bytes})
        ends: Ends = TRANSPORTS[request.param](next(paths), capacity, layout, poison)
        opened.extend(ends)
        return ends

    yield open_channel
    for end in opened:
        end.close()


def numbered(sequence: int, **tensors: Tensor) -> Message:
    return Message(kind=Kind.TRAIN, sequence=sequence, step=sequence, tensors=tensors)


def through(ends: Ends, message: Message) -> Message:
    """What arrives when ``message`` is sent; it is not released."""
    ends[0].send(message, WAIT_S)
    return ends[1].recv(WAIT_S)


def becomes(end: SendEnd | ReceiveEnd, is_ready: bool) -> bool:
    """Whether an end gets ready, as what is on its way arrives; or is not."""
    return end.wait(WAIT_S) if is_ready else not end.ready()


def settles(condition: Callable[[], bool]) -> bool:
    """Whether it holds once everything on its way has arrived."""
    deadline = time.monotonic() + WAIT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


def bits(tensor: Tensor) -> list[int]:
    """The bytes of all elements, in logical order; NaN equals itself here."""
    result: list[int] = tensor.reshape(-1).clone().view(torch.uint8).tolist()
    return result


# Order and capacity


def test_messages_arrive_in_order(open_channel: OpenChannel) -> None:
    sender, receiver = open_channel(capacity=8)
    for sequence in range(8):
        sender.send(numbered(sequence, features=torch.tensor([sequence])))
    arrived = [receiver.recv(WAIT_S) for _ in range(8)]
    assert [message.sequence for message in arrived] == list(range(8))
    assert [message.features.item() for message in arrived] == list(range(8))


@pytest.mark.parametrize("capacity", [1, 2, 8, 64])
def test_sender_waits_when_all_slots_are_in_use(open_channel: OpenChannel, capacity: int) -> None:
    sender, receiver = open_channel(capacity)
    for sequence in range(capacity):
        assert sender.wait(WAIT_S)
        sender.send(numbered(sequence))
    assert not sender.ready()
    first = receiver.recv(WAIT_S)
    assert not sender.ready()  # received, but not released
    receiver.release(first)
    assert sender.wait(WAIT_S)
    assert sender.capacity == receiver.capacity == capacity


@pytest.mark.parametrize("capacity", [1, 2, 8])
def test_slots_are_used_again(open_channel: OpenChannel, capacity: int) -> None:
    sender, receiver = open_channel(capacity)
    for sequence in range(3 * capacity):
        message = through((sender, receiver), numbered(sequence, features=torch.arange(sequence)))
        assert message.features.tolist() == list(range(sequence))
        receiver.release(message)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 4), st.lists(st.sampled_from(["send", "recv", "release"]), max_size=40))
def test_any_interleaving_keeps_count(
    open_channel: OpenChannel, capacity: int, actions: list[str]
) -> None:
    sender, receiver = open_channel(capacity)
    in_use: list[Message] = []
    num_sent = num_received = num_released = 0
    for action in actions:
        if action == "send" and num_sent - num_released < capacity:
            sender.send(numbered(num_sent, features=torch.full((5,), num_sent)), WAIT_S)
            num_sent += 1
        elif action == "recv" and num_received < num_sent:
            in_use.append(receiver.recv(WAIT_S))
            num_received += 1
        elif action == "release" and in_use:
            receiver.release(in_use.pop(0))
            num_released += 1
        assert becomes(sender, num_sent - num_released < capacity)
        assert becomes(receiver, num_received < num_sent)
        used = num_sent - num_released
        assert settles(lambda used=used: sender.fill == receiver.fill == used)
        assert [message.features.tolist() for message in in_use] == [
            [sequence] * 5 for sequence in range(num_released, num_received)
        ]
    sender.close()
    receiver.close()


def test_only_the_oldest_message_is_released(open_channel: OpenChannel) -> None:
    sender, receiver = open_channel()
    sender.send(numbered(0))
    sender.send(numbered(1))
    first, second = receiver.recv(WAIT_S), receiver.recv(WAIT_S)
    with pytest.raises(ChannelError, match="message 1 was released, but the oldest in use is 0"):
        receiver.release(second)
    receiver.release(first)
    receiver.release(second)
    with pytest.raises(ChannelError, match="oldest in use is None"):
        receiver.release(second)


def test_first_message_fixes_the_sequence_and_a_gap_is_an_error(open_channel: OpenChannel) -> None:
    sender, receiver = open_channel()
    receiver.release(through((sender, receiver), numbered(7)))
    sender.send(numbered(9))
    with pytest.raises(ProtocolError, match="message 9 came where message 8 was expected"):
        receiver.recv(WAIT_S)


# Two threads


def test_many_small_messages(open_channel: OpenChannel) -> None:
    sender, receiver = open_channel(capacity=4)
    features = [torch.full((sequence % 7, 3), float(sequence)) for sequence in range(7)]

    def send_all() -> None:
        for sequence in range(2000):
            sender.send(numbered(sequence, features=features[sequence % 7]), WAIT_S)

    with ThreadPoolExecutor() as pool:
        sending = pool.submit(send_all)
        for sequence in range(2000):
            message = receiver.recv(WAIT_S)
            assert torch.equal(message.features, features[sequence % 7])
            receiver.release(message)
        sending.result(WAIT_S)


def test_waiting_sender_wakes_when_a_slot_is_released(open_channel: OpenChannel) -> None:
    sender, receiver = open_channel(capacity=1)
    first = through((sender, receiver), numbered(0))
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(sender.send, numbered(1), WAIT_S)
        receiver.release(first)
        sending.result(WAIT_S)
    assert receiver.recv(WAIT_S).sequence == 1


@pytest.mark.parametrize("closed", [0, 1], ids=["sender", "receiver"])
def test_waiting_end_wakes_when_the_other_closes(open_channel: OpenChannel, closed: int) -> None:
    ends = open_channel(capacity=1)
    through(ends, numbered(0))  # now neither end is ready
    waits = threading.Event()

    def wait() -> None:
        waits.set()
        ends[1 - closed].wait(WAIT_S)

    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(wait)
        assert waits.wait(WAIT_S)
        ends[closed].close()
        with pytest.raises(ChannelClosed, match="gone"):
            waiting.result(WAIT_S)


# Close and time-out


def test_receiver_gets_everything_sent_before_the_sender_closed(open_channel: OpenChannel) -> None:
    sender, receiver = open_channel()
    sender.send(numbered(0, features=torch.ones(3)))
    sender.send(numbered(1))
    sender.close()
    first = receiver.recv(WAIT_S)
    assert first.features.tolist() == [1, 1, 1]
    assert receiver.recv(WAIT_S).sequence == 1
    with pytest.raises(ChannelClosed, match="gone"):
        receiver.recv(WAIT_S)
    receiver.release(first)  # nobody needs the slot: nothing happens


def test_sender_sees_that_the_receiver_closed(open_channel: OpenChannel) -> None:
    sender, receiver = open_channel()
    receiver.release(through((sender, receiver), numbered(0)))
    receiver.close()
    with pytest.raises(ChannelClosed, match="the receiver is gone"):
        sender.send(numbered(1), WAIT_S)


def test_closed_end_refuses_work_and_closes_again(open_channel: OpenChannel) -> None:
    sender, receiver = open_channel()
    message = through((sender, receiver), numbered(0, features=torch.ones(3)))
    for end in (receiver, sender):
        end.close()
        end.close()
    with pytest.raises(ChannelClosed, match="this end of the channel is closed"):
        sender.send(numbered(1))
    with pytest.raises(ChannelClosed, match="this end of the channel is closed"):
        receiver.recv()
    receiver.release(message)
    assert message.features.tolist() == [1, 1, 1]  # what is still in use stays readable


def test_time_out_says_what_was_waited_for(open_channel: OpenChannel) -> None:
    sender, receiver = open_channel(capacity=1)
    with pytest.raises(ChannelTimeout, match=r"waited 0.01 s to receive \(0 of 1 slots in use\)"):
        receiver.recv(timeout_s=0.01)
    sender.send(numbered(0), WAIT_S)
    with pytest.raises(ChannelTimeout, match=r"waited 0.01 s to send \(1 of 1 slots in use\)"):
        sender.send(numbered(1), timeout_s=0.01)
    assert receiver.recv(WAIT_S).sequence == 0  # nothing was lost or sent twice
    assert not receiver.wait(timeout_s=0)


# Tensors


def test_marks_travel_without_tensors(open_channel: OpenChannel) -> None:
    mark = Message(
        kind=Kind.EVALUATION_END, sequence=3, step=120, epoch=2, split="test", saved_step=100
    )
    assert through(open_channel(), mark) == mark


def test_fields_keep_name_order_and_value(open_channel: OpenChannel) -> None:
    tensors = {"targets": torch.arange(6), "features": torch.rand(6, 5), "self": torch.rand(1)}
    sent = Message(kind=Kind.EVALUATE, sequence=0, step=0, tensors=tensors)
    arrived = through(open_channel(), sent).tensors
    assert list(arrived) == ["targets", "features", "self"]
    assert all(torch.equal(arrived[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
        *(torch.int64, torch.int32, torch.int16, torch.int8),
        *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    ],
    ids=str,
)
def test_every_dtype_travels(open_channel: OpenChannel, dtype: torch.dtype) -> None:
    sent = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    arrived = through(open_channel(), numbered(0, features=sent)).features
    assert arrived.dtype == dtype
    assert bits(arrived) == bits(sent)


LAYOUTS = {
    "contiguous": lambda: torch.rand(2, 3, 4, 5),
    "channels last": lambda: torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.rand(6, 4).t(),
    "permuted": lambda: torch.rand(2, 3, 4).permute(1, 2, 0),
    "scalar": lambda: torch.tensor(3.5),
    "eight dimensions": lambda: torch.rand(1, 2, 1, 2, 1, 2, 1, 2),
    "odd stride of one": lambda: torch.rand(4).as_strided((1, 4), (100, 1)),
    "empty": lambda: torch.rand(0),
    "empty batch": lambda: torch.rand(0, 3, 4),
    "empty transposed": lambda: torch.rand(3, 0).t(),
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_dense_strides_are_kept(open_channel: OpenChannel, make: Callable[[], Tensor]) -> None:
    sent = make()
    arrived = through(open_channel(), numbered(0, features=sent)).features
    assert arrived.shape == sent.shape
    assert arrived.stride() == sent.stride()
    assert torch.equal(arrived, sent)
    assert arrived.data_ptr() % ALIGNMENT == 0


GAPS = {
    "columns of a wider one": lambda: torch.rand(4, 10)[:, :7],
    "every other row": lambda: torch.rand(8, 3)[::2],
    "expanded": lambda: torch.rand(4, 1).expand(4, 3),
    "not aligned": lambda: torch.rand(33)[1:],
    "overlapping": lambda: torch.rand(6).as_strided((3, 3), (1, 1)),
}


@pytest.mark.parametrize("make", GAPS.values(), ids=GAPS)
def test_others_arrive_dense_and_aligned(
    open_channel: OpenChannel, make: Callable[[], Tensor]
) -> None:
    sent = make()
    arrived = through(open_channel(), numbered(0, odd=torch.ones(3), features=sent)).features
    assert torch.equal(arrived, sent)
    assert arrived.is_contiguous()
    assert arrived.data_ptr() % ALIGNMENT == 0


def test_ragged_shapes_and_larger_ones_than_announced(open_channel: OpenChannel) -> None:
    ends = open_channel(capacity=2, slot_bytes=256)
    for sequence, rows in enumerate([4, 1, 1000, 3, 0, 2000, 4, 7]):
        sent = torch.rand(rows, 5)
        arrived = through(ends, numbered(sequence, features=sent, targets=torch.arange(rows)))
        assert torch.equal(arrived.features, sent)
        assert torch.equal(arrived.targets, torch.arange(rows))
        assert arrived.targets.data_ptr() % ALIGNMENT == 0
        ends[1].release(arrived)


@pytest.mark.parametrize("num_elements", [3, 1 << 20])
def test_sender_may_change_a_tensor_once_it_is_flushed(
    num_elements: int, open_channel: OpenChannel
) -> None:
    sender, receiver = open_channel(slot_bytes=num_elements * 4 + 64)
    sent = torch.ones(num_elements)
    sender.send(numbered(0, features=sent))
    sender.flush()
    sent.zero_()
    assert receiver.recv(WAIT_S).features.eq(1).all()


def test_large_and_small_messages_keep_their_order(open_channel: OpenChannel) -> None:
    ends = open_channel(capacity=8, slot_bytes=4 << 20)
    for sequence in range(8):
        rows = 1 << 20 if sequence % 2 else 3
        ends[0].send(numbered(sequence, features=torch.full((rows,), float(sequence))), WAIT_S)
    for sequence in range(8):
        arrived = ends[1].recv(WAIT_S)
        assert arrived.features.eq(sequence).all()
        ends[1].release(arrived)


def test_tensor_that_requires_a_gradient_is_refused(open_channel: OpenChannel) -> None:
    sender, receiver = open_channel()
    with pytest.raises(ChannelError, match="'features' requires a gradient"):
        sender.send(numbered(0, features=torch.ones(3, requires_grad=True)))
    assert through((sender, receiver), numbered(0, features=torch.ones(3))).sequence == 0


def test_receiver_may_train_on_the_slot(open_channel: OpenChannel) -> None:
    ends = open_channel(poison=True)
    for sequence in range(4):
        message = through(ends, numbered(sequence, features=torch.full((3,), 2.0)))
        features = message.features.requires_grad_()
        (gradient,) = torch.autograd.grad((features**2).sum(), features)
        assert gradient.tolist() == [4, 4, 4]
        ends[1].release(message)


# Diagnosis


def test_poison_shows_who_keeps_a_view(open_channel: OpenChannel) -> None:
    ends = open_channel(poison=True)
    tensors = {
        "features": torch.rand(3, 4).t(),
        "targets": torch.arange(3),
        "scale": torch.ones(()),
    }
    arrived = through(ends, numbered(0, **tensors))
    kept = dict(arrived.tensors)
    weight = torch.ones(4, requires_grad=True)
    product = (kept["features"] * weight[:, None]).sum()
    ends[1].release(arrived)
    assert kept["features"].isnan().all()
    assert kept["scale"].isnan()
    assert kept["targets"].tolist() == [-1, -1, -1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(product, weight)


def test_statistics_count_messages_bytes_and_waiting(open_channel: OpenChannel) -> None:
    sender, receiver = open_channel(capacity=1)
    assert not receiver.wait(timeout_s=0.02)
    through((sender, receiver), numbered(0, features=torch.rand(3, 4), targets=torch.arange(3)))
    assert not sender.wait(timeout_s=0.02)
    for end in (sender, receiver):
        assert end.statistics.messages == 1
        assert end.statistics.payload_bytes == 3 * 4 * 4 + 3 * 8
        assert end.statistics.oversized == 0
        assert 0.02 <= end.statistics.wait_s < WAIT_S


def test_fill_counts_what_is_not_released(open_channel: OpenChannel) -> None:
    sender, receiver = open_channel(capacity=3)
    sender.send(numbered(0), WAIT_S)
    sender.send(numbered(1), WAIT_S)
    assert settles(lambda: sender.fill == receiver.fill == 2)
    receiver.release(receiver.recv(WAIT_S))
    assert sender.wait(WAIT_S)
    assert settles(lambda: sender.fill == receiver.fill == 1)
