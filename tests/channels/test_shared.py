"""What only the transport between processes of one host has to show."""

from __future__ import annotations

import gc
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppll.channels import sockets
from ppll.channels.base import SlotLayout
from ppll.channels.header import HEADER_BYTES, pack_header
from ppll.channels.layout import layout_of
from ppll.channels.shared import MAX_CAPACITY, SharedReceiveEnd, SharedSendEnd
from ppll.errors import ChannelClosed, ChannelError, ChannelTimeout, ProtocolError
from ppll.message import Kind, Message
from tests.channels import peers
from tests.channels.conftest import Start
from tests.channels.peers import LAYOUT, SECRET, numbered

WAIT_S = peers.PATIENCE_S
SEEN_WITHIN_S = 2.0  # the other end's death

Ends = tuple[SharedSendEnd, SharedReceiveEnd]


def open_channel(path: Path, layout: SlotLayout = LAYOUT, capacity: int = 2) -> Ends:
    receiver = SharedReceiveEnd.listen(path, layout, capacity, SECRET)
    sender = SharedSendEnd.connect(path, SECRET, WAIT_S)
    receiver.accept(WAIT_S)
    return sender, receiver


def pass_one(ends: Ends, message: Message) -> None:
    ends[0].send(message, WAIT_S)
    ends[1].release(ends[1].recv(WAIT_S))


@pytest.fixture
def ends(paths: Iterator[Path]) -> Iterator[Ends]:
    ends = open_channel(next(paths))
    yield ends
    for end in ends:
        end.close()


# Connecting


def test_socket_file_is_gone_once_connected(folder: Path) -> None:
    ends = open_channel(folder / "socket")
    assert list(folder.iterdir()) == []
    for end in ends:
        end.close()


def test_receiver_that_nobody_came_to_leaves_no_file(folder: Path) -> None:
    receiver = SharedReceiveEnd.listen(folder / "socket", LAYOUT, 2, SECRET)
    with pytest.raises(ChannelTimeout):
        receiver.accept(0.02)
    with pytest.raises(ChannelError, match="accept the sender before receiving"):
        receiver.ready()
    receiver.close()
    assert list(folder.iterdir()) == []


def test_processes_in_a_circle_connect(paths: Iterator[Path]) -> None:
    there, back = next(paths), next(paths)
    receivers = [SharedReceiveEnd.listen(path, LAYOUT, 2, SECRET) for path in (there, back)]
    senders = [SharedSendEnd.connect(path, SECRET, WAIT_S) for path in (there, back)]
    assert not senders[0].ready()  # its receiver has not accepted
    for receiver in receivers:
        receiver.accept(WAIT_S)
    for sender, receiver in zip(senders, receivers, strict=True):
        pass_one((sender, receiver), numbered(0))
        sender.close()
        receiver.close()


def test_wrong_secret_is_refused_and_the_right_one_still_accepted(paths: Iterator[Path]) -> None:
    path = next(paths)
    receiver = SharedReceiveEnd.listen(path, LAYOUT, 2, SECRET)
    stranger = SharedSendEnd.connect(path, bytes(32), WAIT_S)
    sender = SharedSendEnd.connect(path, SECRET, WAIT_S)
    receiver.accept(WAIT_S)
    with pytest.raises(ChannelClosed, match="refused the secret"):
        stranger.send(numbered(0), WAIT_S)
    pass_one((sender, receiver), numbered(0))
    for end in (stranger, sender, receiver):
        end.close()


@pytest.mark.parametrize("capacity", [0, MAX_CAPACITY + 1])
def test_capacity_has_a_range(paths: Iterator[Path], capacity: int) -> None:
    with pytest.raises(ChannelError, match=f"has 1 to 64 slots, not {capacity}"):
        SharedReceiveEnd.listen(next(paths), LAYOUT, capacity, SECRET)


def test_shortage_of_memory_says_how_much_was_asked_for(paths: Iterator[Path]) -> None:
    huge = SlotLayout({"features": 2**50})
    with pytest.raises(ChannelError, match=r"cannot reserve 8,589,934,592 MiB .* there is .* MiB"):
        SharedReceiveEnd.listen(next(paths), huge, 8, SECRET)


def test_without_memfd_an_unlinked_file_holds_the_slots(
    paths: Iterator[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    sender, receiver = open_channel(next(paths))
    sender.send(numbered(3))
    assert torch.equal(receiver.recv(WAIT_S).features, numbered(3).features)
    sender.close()
    receiver.close()


# Slots


def test_messages_view_the_slots_in_turn(ends: Ends) -> None:
    sender, receiver = ends
    addresses = []
    for sequence in range(4):
        sender.send(numbered(sequence), WAIT_S)
        message = receiver.recv(WAIT_S)
        addresses.append(message.features.data_ptr())
        receiver.release(message)
    assert addresses[:2] == addresses[2:]
    assert addresses[1] - addresses[0] == LAYOUT.slot_bytes


def test_version_counters_belong_to_slots(ends: Ends) -> None:
    sender, receiver = ends
    sender.send(numbered(0))
    sender.send(numbered(1))
    first, second = receiver.recv(WAIT_S).features, receiver.recv(WAIT_S).features
    first.add_(1)
    assert (first._version, second._version) == (1, 0)


def test_larger_message_than_announced_is_counted_on_both_ends(ends: Ends) -> None:
    sender, receiver = ends
    large = Message(kind=Kind.TRAIN, sequence=1, step=1, tensors={"features": torch.rand(5000).t()})
    pass_one(ends, numbered(0))
    sender.send(large)
    sender.send(numbered(2))
    arrived = receiver.recv(WAIT_S)
    assert torch.equal(arrived.features, large.features)
    receiver.release(arrived)
    assert torch.equal(receiver.recv(WAIT_S).features, numbered(2).features)
    assert sender.statistics.oversized == receiver.statistics.oversized == 1


def test_tensors_outlive_the_channel(paths: Iterator[Path]) -> None:
    sender, receiver = open_channel(next(paths))
    sender.send(numbered(5))
    features = receiver.recv(WAIT_S).features
    for end in (sender, receiver):
        end.close()
    del sender, receiver, end
    assert torch.equal(features, numbered(5).features)


# Nothing grows


def num_descriptors() -> int:
    gc.collect()  # what earlier tests have left in circles is not counted
    return len(os.listdir("/dev/fd"))


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_channels_leave_no_descriptor(paths: Iterator[Path]) -> None:
    def open_use_and_close() -> None:
        ends = open_channel(next(paths))
        pass_one(ends, numbered(0))
        pass_one(ends, numbered(1).with_tensors(features=torch.rand(5000)))
        ends[0].send(numbered(2).with_tensors(features=torch.rand(5000)))  # stays in the socket
        for end in ends:
            end.close()

    open_use_and_close()
    before = num_descriptors()
    for _ in range(50):
        open_use_and_close()
    assert num_descriptors() == before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_messages_leave_no_memory(ends: Ends) -> None:
    message = numbered(0)
    tensors = dict(message.tensors)

    def pass_many(first: int, count: int) -> None:
        for sequence in range(first, first + count):
            pass_one(ends, Message(kind=Kind.TRAIN, sequence=sequence, step=0, tensors=tensors))

    pass_many(0, 2_000)
    before = resident_bytes()
    pass_many(2_000, 20_000)
    assert resident_bytes() - before < 2**22  # 200 bytes a message would be seen


# What no sender of ours would send


class Intruder:
    """A sender with the secret that sends what it likes."""

    def __init__(self, path: Path, capacity: int = 2) -> None:
        self.receiver = SharedReceiveEnd.listen(path, LAYOUT, capacity, SECRET)
        self.socket = sockets.connect(path, SECRET, WAIT_S)
        self.receiver.accept(WAIT_S)
        _, (self.memory,), _, _ = socket.recv_fds(self.socket, 100, 1)

    def sends(self, data: bytes, *fds: int) -> Message:
        """What the receiver makes of it."""
        socket.send_fds(self.socket, [data], fds)
        return self.receiver.recv(WAIT_S)

    def close(self) -> None:
        self.socket.close()
        self.receiver.close()
        os.close(self.memory)


@pytest.fixture
def intruder(paths: Iterator[Path]) -> Iterator[Intruder]:
    intruder = Intruder(next(paths))
    yield intruder
    intruder.close()


def header(tensors: dict[str, Tensor], *, sequence: int = 0, own_memory: bool = False) -> bytes:
    buffer = bytearray(HEADER_BYTES)
    message = Message(kind=Kind.TRAIN, sequence=sequence, step=0)
    pack_header(buffer, message, layout_of(tensors), own_memory=own_memory)
    return bytes(buffer)


SMALL = {"features": torch.rand(4, 8)}
LARGE = {"features": torch.rand(5000)}


def test_extent_outside_the_slot_is_refused(intruder: Intruder) -> None:
    with pytest.raises(ProtocolError, match="20224 bytes lies in a slot; slots have 4352 bytes"):
        intruder.sends(header(LARGE))


def test_descriptor_that_was_not_announced_is_refused_and_closed(intruder: Intruder) -> None:
    before = num_descriptors()
    with pytest.raises(ProtocolError, match="1 descriptors came with a message, expected 0"):
        intruder.sends(header(SMALL), intruder.memory)
    assert num_descriptors() == before


def test_announced_memory_must_come(intruder: Intruder) -> None:
    with pytest.raises(ProtocolError, match="0 descriptors came with a message, expected 1"):
        intruder.sends(header(LARGE, own_memory=True))


def test_announced_memory_must_be_needed(intruder: Intruder) -> None:
    with pytest.raises(ProtocolError, match="256 bytes lies in memory of its own"):
        intruder.sends(header(SMALL, own_memory=True), intruder.memory)


def test_announced_memory_must_be_large_enough(intruder: Intruder) -> None:
    before = num_descriptors()
    with pytest.raises(ProtocolError, match="cannot map 1 slots of 20224 bytes"):
        intruder.sends(header(LARGE, own_memory=True), intruder.memory)
    assert num_descriptors() == before


def test_more_messages_than_slots_are_refused(intruder: Intruder) -> None:
    for sequence in range(2):
        intruder.sends(header(SMALL, sequence=sequence))
    with pytest.raises(ProtocolError, match="more messages came than the 2 slots hold"):
        intruder.sends(header(SMALL, sequence=2))


def test_header_cut_short_by_the_end_is_no_message(intruder: Intruder) -> None:
    intruder.socket.sendall(header(SMALL)[:100])
    intruder.socket.close()
    with pytest.raises(ChannelClosed):
        intruder.receiver.recv(WAIT_S)


def test_more_credits_than_slots_are_refused(paths: Iterator[Path]) -> None:
    path = next(paths)
    receiver = SharedReceiveEnd.listen(path, LAYOUT, 2, SECRET)
    sender = SharedSendEnd.connect(path, SECRET, WAIT_S)
    receiver.accept(WAIT_S)
    assert sender.ready()
    assert receiver._reader is not None
    receiver._reader.socket.sendall(b"?")
    with pytest.raises(ProtocolError, match="3 credits came back for 2 slots"):
        sender.ready()
    sender.close()
    receiver.close()


def test_another_greeting_is_refused(paths: Iterator[Path]) -> None:
    path = next(paths)
    with sockets.listen(path) as listener:
        sender = SharedSendEnd.connect(path, SECRET, WAIT_S)
        with sockets.accept(listener, SECRET, WAIT_S) as peer:
            peer.sendall(b"HTTP/1.1 400 Bad Request")
            with pytest.raises(ProtocolError, match="greets with b'HTTP'"):
                sender.wait(WAIT_S)
    sender.close()


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.integers(0, 8 * HEADER_BYTES - 1), min_size=1, max_size=4))
def test_flipped_bits_give_an_error_or_a_message(paths: Iterator[Path], flips: list[int]) -> None:
    data = bytearray(header(SMALL | {"targets": torch.arange(4)}))
    for bit in flips:
        data[bit // 8] ^= 1 << bit % 8
    expect_error_or_message(next(paths), bytes(data))


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(min_size=HEADER_BYTES - 8, max_size=HEADER_BYTES - 8))
def test_noise_gives_an_error_or_a_message(paths: Iterator[Path], noise: bytes) -> None:
    expect_error_or_message(next(paths), header({})[:8] + noise)


def expect_error_or_message(path: Path, data: bytes) -> None:
    intruder = Intruder(path)
    try:
        message = intruder.sends(data)
    except ProtocolError:
        pass
    else:
        for tensor in message.tensors.values():
            assert len(tensor.reshape(-1).tolist()) == tensor.numel()  # all can be read
    finally:
        intruder.close()


# Two processes


@pytest.mark.processes
@pytest.mark.parametrize("end", ["exit", "wait"], ids=["os._exit", "SIGKILL"])
def test_death_of_the_sender_is_seen_after_what_it_sent(
    start: Start, paths: Iterator[Path], end: peers.End
) -> None:
    path = next(paths)
    receiver = SharedReceiveEnd.listen(path, LAYOUT, 3, SECRET)
    process = start(peers.send_and_end, path, 3, end)
    receiver.accept(WAIT_S)
    for sequence in range(3):
        assert torch.equal(receiver.recv(WAIT_S).features, numbered(sequence).features)
    if end == "wait":
        process.kill()
    with pytest.raises(ChannelClosed):
        receiver.recv(SEEN_WITHIN_S)
    receiver.close()


@pytest.mark.processes
@pytest.mark.parametrize("end", ["exit", "wait"], ids=["os._exit", "SIGKILL"])
def test_death_of_the_receiver_is_seen_by_a_waiting_sender(
    start: Start, paths: Iterator[Path], end: peers.End
) -> None:
    path = next(paths)
    process = start(peers.receive_and_end, path, 2, end)
    sender = SharedSendEnd.connect(path, SECRET, WAIT_S)
    sender.send(numbered(0), WAIT_S)
    sender.send(numbered(1), WAIT_S)
    if end == "wait":
        process.kill()
    with pytest.raises(ChannelClosed):
        sender.send(numbered(2), SEEN_WITHIN_S)
    sender.close()


@pytest.mark.processes
def test_a_stage_in_a_process_of_its_own(start: Start, paths: Iterator[Path]) -> None:
    there, back = next(paths), next(paths)
    receiver = SharedReceiveEnd.listen(back, LAYOUT, 2, SECRET)
    process = start(peers.double, there, back)
    sender = SharedSendEnd.connect(there, SECRET, WAIT_S)
    receiver.accept(WAIT_S)
    for sequence in range(500):
        sender.send(numbered(sequence), WAIT_S)
        message = receiver.recv(WAIT_S)
        assert torch.equal(message.features, 2 * numbered(sequence).features)
        receiver.release(message)
    sender.send(Message(kind=Kind.STOP, sequence=500, step=500), WAIT_S)
    assert receiver.recv(WAIT_S).kind is Kind.STOP
    process.join(WAIT_S)
    assert process.exitcode == 0
    sender.close()
    receiver.close()
