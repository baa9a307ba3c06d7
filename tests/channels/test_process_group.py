"""The channel between hosts beyond its contract: deaths, strangers, and what goes over the wire."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore, PrefixStore, ProcessGroupGloo

from ppll.channels.base import SlotLayout
from ppll.channels.group_link import RECEIVER, SENDER, GroupLink
from ppll.channels.header import HEADER_BYTES, pack_header
from ppll.channels.layout import layout_of
from ppll.channels.process_group import GroupReceiveEnd, GroupSendEnd
from ppll.errors import ChannelClosed, ChannelError, ChannelTimeout, ProtocolError
from ppll.message import Kind, Message
from tests.channels import peers
from tests.channels.conftest import Start
from tests.channels.peers import LAYOUT, numbered, reach

WAIT_S = peers.PATIENCE_S
SEEN_WITHIN_S = 5.0
LOOPBACK = "127.0.0.1"


def test_who_waits_for_nobody_says_for_which_channel() -> None:
    with pytest.raises(ChannelTimeout, match=r"other end of channel 'features-2' within 0.05 s"):
        GroupSendEnd(HashStore(), "features-2", LAYOUT, 2, address=LOOPBACK, timeout_s=0.05)


@pytest.mark.parametrize(
    ("content", "timeout_s", "message"),
    [
        (None, 0.5, "not its other end, and says nothing for 0.5 s"),
        (torch.full((32,), 7, dtype=torch.uint8), WAIT_S, "not its other end: it says something"),
    ],
    ids=["silence", "noise"],
)
def test_who_is_not_the_other_end_is_an_error(
    content: torch.Tensor | None, timeout_s: float, message: str
) -> None:
    """A group that somebody made who does not know the channel."""
    store = HashStore()
    edge = PrefixStore("edge", store)
    edge.set(f"end-{RECEIVER}", "there")
    device = ProcessGroupGloo.create_device(hostname=LOOPBACK)
    options = ProcessGroupGloo._Options()
    options._devices = [device]
    with ThreadPoolExecutor() as pool:
        stranger = pool.submit(ProcessGroupGloo, edge, RECEIVER, 2, options)
        link = pool.submit(GroupLink, store, "edge", SENDER, LOOPBACK, timeout_s)
        group = stranger.result(WAIT_S)
        said = None if content is None else group.send([content], SENDER, 15)
        with pytest.raises(ChannelError, match=message):
            link.result(WAIT_S)
        del said  # What is still being sent ends with it.


def ports() -> set[int]:
    """On which this process listens."""
    own = {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = [row for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own]
    return {int(row[1].rpartition(":")[2], 16) for row in listening}


def counted(number: int) -> bytes:
    return number.to_bytes(8, "little")


@pytest.mark.skipif(sys.platform != "linux", reason="looks for ports in /proc")
@pytest.mark.parametrize(
    ("contents", "timeout_s"),
    [
        pytest.param([b""], WAIT_S, id="silence"),
        pytest.param([b"GET / HTTP/1.1\r\n\r\n"], WAIT_S, id="words"),
        pytest.param([bytes(range(256)) * 16], WAIT_S, id="noise"),
        pytest.param([counted(n) for n in range(32)], 5.0, id="numbers", marks=pytest.mark.slow),
        pytest.param(
            [counted(n) + bytes(range(1, 255)) for n in range(32)],
            5.0,
            id="numbers and noise",
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.parametrize("first", [GroupSendEnd, GroupReceiveEnd])
def test_strangers_on_the_port_bring_the_right_bytes_or_an_error(
    contents: list[bytes], timeout_s: float, first: type[GroupSendEnd | GroupReceiveEnd]
) -> None:
    """They come when one end listens and the other is not there yet."""
    store, before = HashStore(), ports()
    for rank in (SENDER, RECEIVER):
        PrefixStore("edge", store).set(f"end-{rank}", "there")

    def make(kind: Callable[..., Any]) -> Any:
        try:
            return kind(store, "edge", LAYOUT, 2, address=LOOPBACK, timeout_s=timeout_s)
        except ChannelError as error:
            return error

    with ThreadPoolExecutor() as pool, ExitStack() as strangers:
        made = [pool.submit(make, first)]
        while not (opened := ports() - before):
            time.sleep(0.01)
        for content in contents:
            address = (LOOPBACK, min(opened))
            stranger = strangers.enter_context(socket.create_connection(address))
            stranger.sendall(content)
        second = GroupReceiveEnd if first is GroupSendEnd else GroupSendEnd
        made.append(pool.submit(make, second))
        one, other = (future.result(WAIT_S) for future in made)
    if isinstance(one, ChannelError) or isinstance(other, ChannelError):
        assert timeout_s < WAIT_S, "nobody else has guessed a number"
        assert isinstance(one, ChannelError)
        assert isinstance(other, ChannelError)
        return
    sender, receiver = (one, other) if first is GroupSendEnd else (other, one)
    for sequence in range(4):
        sender.send(numbered(sequence), WAIT_S)
        message = receiver.recv(WAIT_S)
        assert torch.equal(message.features, numbered(sequence).features)
        receiver.release(message)
    sender.close()
    receiver.close()


@pytest.fixture
def link_to_receiver() -> Iterator[tuple[GroupLink, GroupReceiveEnd]]:
    """A sender's bare link, which may say what it likes, and the end that must not believe it."""
    store = HashStore()
    with ThreadPoolExecutor() as pool:
        link = pool.submit(GroupLink, store, "edge", SENDER, LOOPBACK, WAIT_S)
        end = GroupReceiveEnd(store, "edge", LAYOUT, 2, address=LOOPBACK, timeout_s=WAIT_S)
        yield link.result(WAIT_S), end
    end.close()


def header(sequence: int = 0, *, own_memory: bool = False, rows: int = 4) -> torch.Tensor:
    buffer = bytearray(HEADER_BYTES)
    message = Message(
        kind=Kind.TRAIN, sequence=sequence, step=0, tensors={"features": torch.zeros(rows, 8)}
    )
    pack_header(buffer, message, layout_of(message.tensors), own_memory=own_memory)
    return torch.tensor(list(buffer), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.full((HEADER_BYTES,), 7, dtype=torch.uint8), "magic"),
        (torch.zeros(3, dtype=torch.uint8), "magic"),
        (header(own_memory=True), "larger than a slot"),
        (header(rows=4000), "not larger than a slot"),
    ],
    ids=["noise", "too short", "small with memory of its own", "large without"],
)
def test_what_is_no_message_is_an_error(
    content: torch.Tensor, message: str, link_to_receiver: tuple[GroupLink, GroupReceiveEnd]
) -> None:
    link, end = link_to_receiver
    link.send(content, 0)
    with pytest.raises(ProtocolError, match=message):
        end.recv(WAIT_S)


def test_memory_that_is_not_there_is_an_error(
    link_to_receiver: tuple[GroupLink, GroupReceiveEnd], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppll.channels.memory.available_memory_bytes", lambda: 1000)
    link, end = link_to_receiver
    link.send(header(rows=4000, own_memory=True), 0)
    with pytest.raises(ChannelError, match="cannot reserve"):
        end.recv(WAIT_S)


def test_more_messages_than_slots_are_an_error(
    link_to_receiver: tuple[GroupLink, GroupReceiveEnd],
) -> None:
    link, end = link_to_receiver
    slot = torch.zeros(128, dtype=torch.uint8)
    for sequence in range(3):
        link.send(header(sequence), 0)
        link.send(slot, 1)
    assert [end.recv(WAIT_S).sequence for _ in range(2)] == [0, 1]
    with pytest.raises(ProtocolError, match="more messages came than the 2 slots hold"):
        end.recv(WAIT_S)


def pair(layout: SlotLayout, capacity: int = 2) -> tuple[GroupSendEnd, GroupReceiveEnd]:
    store = HashStore()
    with ThreadPoolExecutor() as pool:
        sender = pool.submit(
            GroupSendEnd, store, "edge", layout, capacity, address=LOOPBACK, timeout_s=WAIT_S
        )
        receiver = GroupReceiveEnd(
            store, "edge", layout, capacity, address=LOOPBACK, timeout_s=WAIT_S
        )
        return sender.result(WAIT_S), receiver


def test_a_message_is_its_tensors_and_one_percent(tmp_path: Path) -> None:
    features, targets = torch.rand(64, 16, 8, 8), torch.zeros(64, dtype=torch.int64)
    sender, receiver = pair(SlotLayout({"features": features.nbytes, "targets": targets.nbytes}))
    for sequence in range(10):
        tensors = {"features": features, "targets": targets}
        sender.send(Message(kind=Kind.TRAIN, sequence=sequence, step=0, tensors=tensors), WAIT_S)
        receiver.release(receiver.recv(WAIT_S))
    counted = sender.statistics
    assert counted.payload_bytes == 10 * (features.nbytes + targets.nbytes)
    assert counted.payload_bytes < counted.transport_bytes < 1.01 * counted.payload_bytes
    sender.close()
    receiver.close()


def test_closed_ends_leave_no_thread() -> None:
    before = threading.active_count()
    for _ in range(3):
        sender, receiver = pair(LAYOUT)
        sender.send(numbered(0), WAIT_S)
        sender.close()
        assert receiver.recv(WAIT_S).sequence == 0
        receiver.close()
    assert threading.active_count() == before


@pytest.mark.slow
def test_a_receiver_that_is_only_a_link_is_not_waited_for_long() -> None:
    """Its process hangs: an end that closes goes on without its answer."""
    store = HashStore()
    with ThreadPoolExecutor() as pool:
        link = pool.submit(GroupLink, store, "edge", RECEIVER, LOOPBACK, WAIT_S)
        sender = GroupSendEnd(store, "edge", LAYOUT, 2, address=LOOPBACK, timeout_s=WAIT_S)
        assert link.result(WAIT_S)
    begin_s = time.monotonic()
    sender.close()
    assert time.monotonic() - begin_s < WAIT_S
    with pytest.raises(ChannelClosed):
        sender.send(numbered(0))


@pytest.mark.processes
def test_a_killed_sender_is_seen_after_what_has_come(start: Start, tmp_path: Path) -> None:
    process = start(peers.send_over_network, tmp_path, 3, "wait")
    receiver = reach(tmp_path, GroupReceiveEnd, 3)
    for sequence in range(3):
        assert torch.equal(receiver.recv(WAIT_S).features, numbered(sequence).features)
    process.kill()
    with pytest.raises(ChannelClosed, match=r"the sender is gone \(.+\)\."):
        receiver.recv(SEEN_WITHIN_S)
    receiver.close()


@pytest.mark.processes
def test_a_sender_that_leaves_without_closing_may_lose_what_came_last(
    start: Start, tmp_path: Path
) -> None:
    start(peers.send_over_network, tmp_path, 3, "exit")
    receiver = reach(tmp_path, GroupReceiveEnd, 3)
    arrived: list[int] = []
    with pytest.raises(ChannelClosed, match="the sender is gone"):
        arrived.extend(message.sequence for message in iter(lambda: receiver.recv(WAIT_S), None))
    assert arrived == list(range(len(arrived)))
    receiver.close()


@pytest.mark.processes
@pytest.mark.parametrize("end", ["exit", "wait"], ids=["os._exit", "SIGKILL"])
def test_death_of_the_receiver_is_seen_by_a_waiting_sender(
    start: Start, tmp_path: Path, end: peers.End
) -> None:
    process = start(peers.receive_over_network, tmp_path, 2, end)
    sender = reach(tmp_path, GroupSendEnd, 2)
    sender.send(numbered(0), WAIT_S)
    sender.send(numbered(1), WAIT_S)
    if end == "wait":
        process.kill()
    with pytest.raises(ChannelClosed, match="the receiver is gone"):
        sender.send(numbered(2), SEEN_WITHIN_S)
    sender.close()
