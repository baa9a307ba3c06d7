"""Messages between GPUs of different hosts, as far as a processor can show it."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed import HashStore

from ppll.channels import group_receive, group_send, nccl_link, nccl_slots
from ppll.channels.group_link import FOREVER, RECEIVER, SENDER
from ppll.channels.layout import layout_of
from ppll.channels.memory import PROCESSOR
from ppll.channels.nccl_slots import NcclReceiveSlots
from ppll.channels.process_group import GroupReceiveEnd, GroupSendEnd
from ppll.errors import ChannelClosed, ChannelError, ChannelTimeout, TransportError
from tests.channels import nccl, peers
from tests.channels.conftest import Start
from tests.channels.devices import Event, Pair
from tests.channels.peers import LAYOUT, numbered, reach
from tests.channels.test_contract import through

WAIT_S = peers.PATIENCE_S
SLOT_BYTES = 256


# Order


class _Unstarted:
    """A thread that the test is itself."""

    def __init__(self, **_: object) -> None:
        pass

    def start(self) -> None:
        pass


def two_gpus(capacity: int) -> Pair:
    """Whose receiver's messages arrive when the test looks."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(nccl_slots.threading, "Thread", _Unstarted)
        return Pair(SLOT_BYTES, capacity)


class Listener:
    """What hears the headers and waits for the tensors, a step at a time."""

    def __init__(self, slots: NcclReceiveSlots, num_bytes: int) -> None:
        self._slots, self._num_bytes = slots, num_bytes
        self._expected: deque[tuple[Event, Any]] = deque()
        self.num_heard = self.num_arrived = 0

    def hear(self, capacity: int) -> None:
        self._slots.expect(self.num_heard % capacity, self._num_bytes, self._arrive)
        self._expected.append(self._slots._expected.get_nowait())  # type: ignore[arg-type]
        self.num_heard += 1

    def look(self) -> None:
        if self._expected and self._expected[0][0].query():
            self._expected.popleft()[1]()

    def _arrive(self) -> None:
        self.num_arrived += 1


def pass_messages(
    gpus: Pair, capacity: int, num_messages: int, chance: random.Random
) -> tuple[list[Tensor], list[Tensor]]:
    """What the sender computed, and what the receiver read, on GPUs that dawdle.

    Both hosts run as far ahead as headers and credits allow, in any order.
    """
    layout = layout_of({"features": torch.zeros(8)})
    listener = Listener(gpus.receiver, layout.extent_bytes)
    sent: list[Tensor] = []
    read: list[Tensor] = []
    num_received = num_released = 0
    for stream in gpus.streams:
        stream.pace = chance.random() ** 4 + 0.001
    while num_released < num_messages:
        action = chance.choice(("send", "hear", "look", "recv", "release", "gpu"))
        if action == "send" and len(sent) < min(num_messages, num_released + capacity):
            features, number = torch.zeros(8), float(len(sent) + 1)
            gpus.sending.add(lambda f=features, n=number: f.fill_(n))
            gpus.sender.send(len(sent) % capacity, layout, {"features": features})
            sent.append(torch.full((8,), number))
            if chance.random() < 0.5:
                gpus.sender.flush()
                # The memory is another's now: it comes after the copy in the order of streams.
                gpus.sending.add(lambda f=features: f.fill_(-1.0))
        elif action == "hear" and listener.num_heard < len(sent):
            listener.hear(capacity)
        elif action == "look":
            listener.look()
        elif action == "recv" and num_received < listener.num_arrived:
            slot = gpus.receiver.read(num_received % capacity, layout)["features"]
            gpus.receiving.add(lambda s=slot: read.append(s.clone()))
            num_received += 1
        elif action == "release" and num_released < num_received:
            index = num_released % capacity
            gpus.receiving.add(lambda i=index: gpus.receiver.poison(i))
            gpus.receiver.give_back(index)
            num_released += 1
        elif action == "gpu":
            gpus.step(chance)
    gpus.finish(chance)
    return sent, read


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(0, 2**32))
def test_streams_keep_every_message_whole_in_any_order(capacity: int, seed: int) -> None:
    sent, read = pass_messages(two_gpus(capacity), capacity, 8, random.Random(seed))
    assert torch.equal(torch.stack(read), torch.stack(sent))


@pytest.mark.parametrize("missing", ["copied", "freed", "filled", "flush"])
def test_without_one_of_the_orders_messages_go_wrong(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above would notice."""
    wrong = 0
    for seed in range(50):
        gpus = two_gpus(2)
        if missing == "flush":
            monkeypatch.setattr(gpus.one.side, "hold_caller", lambda: None)
        elif missing == "copied":
            monkeypatch.setattr(gpus.one.side, "_order", lambda first, second: None)
        elif missing == "filled":
            monkeypatch.setattr(Event, "query", lambda self: True)
        else:
            for event in gpus.receiver._freed:
                monkeypatch.setattr(event, "wait", lambda stream: None)
        sent, read = pass_messages(gpus, 2, 8, random.Random(seed))
        wrong += not torch.equal(torch.stack(read), torch.stack(sent))
    assert wrong


# What torch is asked for


class Torch:
    """Streams, events and a group that note who calls them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.error: Exception | None = None
        self.stream = "current"
        for name, stand_in in {
            "Stream": lambda device: "own",
            "Event": lambda **_: self,
            "current_stream": lambda device: "current",
            "stream": self._on,
            "device": lambda device: nullcontext(),
            "synchronize": lambda device: self.calls.append("synchronize"),
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)

    @contextmanager
    def _on(self, stream: str) -> Iterator[None]:
        self.stream, before = stream, self.stream
        yield
        self.stream = before

    def record(self, stream: str) -> None:
        self.calls.append(f"record on {stream}")

    def wait(self, stream: str | None = None) -> None:
        self.calls.append(f"wait on {stream or self.stream}")

    def send(self, tensors: list[Tensor], peer: int, tag: int) -> Torch:
        return self._pass("send", tensors, peer)

    def recv(self, tensors: list[Tensor], peer: int, tag: int) -> Torch:
        return self._pass("receive", tensors, peer)

    def _pass(self, what: str, tensors: list[Tensor], peer: int) -> Torch:
        if self.error is not None:
            raise self.error
        self.calls.append(f"{what} {len(tensors[0])} with {peer} on {self.stream}")
        return self

    def abort(self) -> None:
        self.calls.append("abort")

    def synchronize(self) -> None:
        self.calls.append("stream synchronize")


def test_links_queue_on_the_right_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Torch(monkeypatch)
    link = nccl_link.NcclLink(fake, RECEIVER, nccl.GPU)
    (slot,) = link.reserve(256, 1)
    freed: Any = link.event()
    link.record(freed)
    link.receive(slot[:8], freed)
    link.send(slot[:4])
    link.give_up()
    link.close()
    assert fake.calls == [
        "synchronize",
        "record on current",
        *("wait on own", "receive 8 with 0 on own", "wait on own", "record on own"),
        "send 4 with 0 on current",
        "abort",
    ]


@pytest.mark.parametrize("is_given_up", [False, True])
def test_errors_of_nccl_are_named_unless_the_other_end_is_gone(
    is_given_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Torch(monkeypatch)
    fake.error = RuntimeError("ncclRemoteError")
    link = nccl_link.NcclLink(fake, SENDER, nccl.GPU)
    kind, message = ChannelError, "a message cannot be sent from cpu:0: ncclRemoteError"
    if is_given_up:
        link.give_up()
        kind, message = ChannelClosed, "the other end is gone"
    with pytest.raises(kind, match=message):
        link.send(torch.zeros(4, dtype=torch.uint8))


def test_nothing_is_given_up_under_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL frees what the call still uses."""
    fake = Torch(monkeypatch)
    link = nccl_link.NcclLink(fake, SENDER, nccl.GPU)
    calls, may_return = threading.Event(), threading.Event()

    def send(*_: object) -> None:
        calls.set()
        may_return.wait()
        fake.calls.append("sent")

    monkeypatch.setattr(fake, "send", send)
    monkeypatch.setattr(nccl_link, "_CALL_S", WAIT_S)
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(link.send, torch.zeros(4, dtype=torch.uint8))
        assert calls.wait(WAIT_S)
        link.give_up()
        may_return.set()
        sending.result(WAIT_S)
    link.close()
    assert fake.calls == ["sent", "abort"]
    with pytest.raises(ChannelClosed, match="the other end is gone"):
        link.send(torch.zeros(4, dtype=torch.uint8))


def test_a_call_that_hangs_is_given_up_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Torch(monkeypatch)
    link = nccl_link.NcclLink(fake, SENDER, nccl.GPU)
    monkeypatch.setattr(nccl_link, "_CALL_S", 0.01)
    with link._calling:
        link.give_up()
        link.close()
    assert fake.calls == ["abort"]


def test_a_communicator_that_does_not_end_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def abort() -> None:
        raise RuntimeError("ncclInternalError")

    fake = Torch(monkeypatch)
    monkeypatch.setattr(fake, "abort", abort)
    link = nccl_link.NcclLink(fake, SENDER, nccl.GPU)
    link.give_up()
    link.close()
    assert caplog.messages == ["NCCL cannot end a connection: ncclInternalError"]


@pytest.mark.parametrize("has_ended", [False, True])
def test_memory_stays_while_nccl_may_use_it(
    has_ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nccl_link, "_left", [])
    link = nccl_link.NcclLink(Torch(monkeypatch), RECEIVER, nccl.GPU)
    (slot,) = link.reserve(256, 1)
    if has_ended:
        link.give_up()
    link.close()
    kept = [tensor is slot for left in nccl_link._left for tensor in left._slots]
    assert kept == ([] if has_ended else [True])


@pytest.mark.parametrize(("rank", "call"), [(SENDER, "send"), (RECEIVER, "receive")])
def test_torch_makes_a_communicator_and_leaves_the_rest_to_us(
    rank: int, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Torch(monkeypatch)
    made: list[tuple[int, int, timedelta]] = []
    own = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    monkeypatch.setenv(own, "1")

    class Nccl(Torch):
        class Options:
            _timeout = timedelta()

        def __init__(self, store: object, rank: int, size: int, options: Options) -> None:
            assert {os.environ[name] for name in nccl_link._TORCHS_OWN} == {"0"}
            assert own in nccl_link._TORCHS_OWN
            made.append((rank, size, options._timeout))
            vars(self).update(vars(fake))

    monkeypatch.setattr(torch.distributed, "ProcessGroupNCCL", Nccl, raising=False)
    for name in nccl_link._TORCHS_OWN:
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: fake)
    group = nccl_link._communicator(HashStore(), rank, nccl.GPU)
    assert isinstance(group, Nccl)
    assert made == [(rank, 2, FOREVER)]
    assert fake.calls == [
        f"{call} 1 with {1 - rank} on current",
        "wait on current",
        "stream synchronize",
    ]


def test_memory_that_a_gpu_has_not_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    link = nccl_link.NcclLink(Torch(monkeypatch), SENDER, nccl.GPU)
    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(ChannelError, match=r"reserve 1 MiB .* Lower runtime.capacity"):
        link.reserve(1 << 18, 4)


# Who goes


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    nccl.stand_in(monkeypatch)


def ends(
    sends_from: torch.device = nccl.GPU, arrives_at: torch.device = nccl.GPU
) -> tuple[GroupSendEnd, GroupReceiveEnd]:
    store, where = HashStore(), {"address": "127.0.0.1", "timeout_s": WAIT_S}
    with ThreadPoolExecutor() as pool:
        sender = pool.submit(
            GroupSendEnd, store, "features-0-1", LAYOUT, 2, device=sends_from, **where
        )
        receiver = GroupReceiveEnd(store, "features-0-1", LAYOUT, 2, device=arrives_at, **where)
        return sender.result(WAIT_S), receiver


@pytest.mark.usefixtures("stand_in")
def test_features_stay_on_the_gpu_and_ends_leave_no_thread() -> None:
    before = threading.active_count()
    sender, receiver = ends()
    assert sender.device == nccl.GPU
    sender.send(numbered(0), WAIT_S)
    sender.close()
    assert torch.equal(receiver.recv(WAIT_S).features, numbered(0).features)
    receiver.close()
    deadline = time.monotonic() + WAIT_S
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert threading.active_count() <= before
    assert all(end._slots._link.is_given_up.is_set() for end in (sender, receiver))  # type: ignore[attr-defined]


@pytest.fixture
def held_back(stand_in: None, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What lets a sent message arrive, of each."""
    release: list[Callable[[], None]] = []

    def send(self: nccl.StandIn, content: Tensor) -> None:
        release.append(partial(self._wire.put, content.clone()))

    monkeypatch.setattr(nccl.StandIn, "send", send)
    return release


def has_left(end: GroupSendEnd | GroupReceiveEnd) -> bool:
    """Whether its other end has answered."""
    assert end._group._thread is not None
    return not end._group._thread.is_alive()


def test_a_clean_end_waits_for_what_is_on_its_way(held_back: list[Callable[[], None]]) -> None:
    sender, receiver = ends()
    sender.send(numbered(0), WAIT_S)
    sender.send(numbered(1).without(["features"]), WAIT_S)
    sender.close(patience_s=0.01)  # its process is still there
    assert not has_left(sender)
    assert not receiver.ready()
    held_back[0]()
    assert torch.equal(receiver.recv(WAIT_S).features, numbered(0).features)
    assert receiver.recv(WAIT_S).sequence == 1
    with pytest.raises(ChannelClosed, match="the sender is gone"):
        receiver.recv(WAIT_S)
    receiver.close()
    assert has_left(receiver)


def test_a_receiver_that_closes_early_waits_for_no_message(
    held_back: list[Callable[[], None]],
) -> None:
    sender, receiver = ends()
    sender.send(numbered(0), WAIT_S)
    receiver.close()
    assert has_left(receiver)
    with pytest.raises(ChannelClosed, match="the receiver is gone"):
        sender.send(numbered(1), WAIT_S)
    sender.close()
    assert has_left(sender)


@pytest.mark.usefixtures("stand_in")
def test_a_gpu_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: nccl.Filled) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(nccl.Filled, "synchronize", fail)
    sender, receiver = ends()
    sender.send(numbered(0), WAIT_S)
    with pytest.raises(ChannelError, match=r"cannot be received on cpu:0: CUDA error: an illegal"):
        receiver.recv(WAIT_S)
    receiver.close()
    assert has_left(receiver)
    sender.close()
    assert has_left(sender)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("call", ["send", "receive"])
def test_an_error_of_nccl_is_told_where_nobody_is_gone(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise TransportError(f"{call}: ncclSystemError")

    monkeypatch.setattr(nccl.StandIn, call, fail)
    for module in (group_send, group_receive):
        monkeypatch.setattr(module, "NOTICE_S", 0.01)
    sender, receiver = ends()
    with pytest.raises(TransportError, match=f"{call}: ncclSystemError"):
        through((sender, receiver), numbered(0))
    sender.close(patience_s=0)
    receiver.close()


@pytest.mark.usefixtures("stand_in")
def test_an_error_of_nccl_is_not_told_where_the_receiver_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        closing.append(pool.submit(receiver.close))
        raise TransportError("send: ncclRemoteError")

    closing: list[Any] = []
    monkeypatch.setattr(nccl.StandIn, "send", fail)
    sender, receiver = ends()
    with ThreadPoolExecutor() as pool:
        with pytest.raises(ChannelClosed, match="the receiver is gone"):
            sender.send(numbered(0), WAIT_S)
        closing[0].result(WAIT_S)
    sender.close()


@pytest.mark.processes
def test_an_error_of_nccl_is_not_told_where_the_sender_has_died(
    start: Start, tmp_path: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(peers.announce_over_network, tmp_path)

    def fail(*_: object) -> None:
        process.kill()
        process.join()
        raise TransportError("receive: ncclRemoteError")

    monkeypatch.setattr(nccl.StandIn, "receive", fail)
    receiver = reach(tmp_path, GroupReceiveEnd, 3, nccl.GPU)
    arrived: list[int] = []
    with pytest.raises(ChannelClosed, match="the sender is gone"):
        arrived.extend(message.sequence for message in iter(lambda: receiver.recv(WAIT_S), None))
    assert arrived in ([], [0])
    receiver.close()


@pytest.mark.processes
def test_a_killed_receiver_is_seen_and_the_gpu_let_go(
    start: Start, tmp_path: Path, stand_in: None
) -> None:
    process = start(peers.receive_over_network, tmp_path, 0, "wait", nccl.GPU)
    sender = reach(tmp_path, GroupSendEnd, 1, nccl.GPU)
    sender.send(numbered(0), WAIT_S)
    process.kill()
    with pytest.raises(ChannelClosed, match="the receiver is gone"):
        sender.send(numbered(1), WAIT_S)
    assert sender._slots._link.is_given_up.wait(WAIT_S)  # type: ignore[attr-defined]
    sender.close()


@pytest.mark.processes
def test_what_a_killed_sender_has_only_announced_never_arrives(
    start: Start, tmp_path: Path, stand_in: None
) -> None:
    """Not even in the slot that giving up leaves behind, nor the mark that came after it."""
    process = start(peers.announce_over_network, tmp_path)
    receiver = reach(tmp_path, GroupReceiveEnd, 3, nccl.GPU)
    while receiver.fill < 3:
        time.sleep(0.001)
    assert receiver.recv(WAIT_S).sequence == 0
    process.kill()
    with pytest.raises(ChannelClosed, match="the sender is gone"):
        receiver.recv(WAIT_S)
    assert receiver._slots._link.is_given_up.is_set()  # type: ignore[attr-defined]
    receiver._slots._thread.join(WAIT_S)  # type: ignore[attr-defined]
    with pytest.raises(ChannelClosed, match="the sender is gone"):
        receiver.recv(WAIT_S)
    receiver.close()


# Which way


@pytest.mark.parametrize(
    ("sends_from", "arrives_at"), [(nccl.GPU, PROCESSOR), (PROCESSOR, nccl.GPU)]
)
@pytest.mark.usefixtures("stand_in")
def test_a_gpu_and_a_processor_take_the_hosts_memory_and_say_so(
    sends_from: torch.device, arrives_at: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    sender, receiver = ends(sends_from, arrives_at)
    sender.send(numbered(0), WAIT_S)
    assert torch.equal(receiver.recv(WAIT_S).features, numbered(0).features)
    assert sender.device == PROCESSOR
    assert caplog.messages == [
        "channel 'features-0-1' goes through the host's memory: the other end does not offer NCCL."
    ]
    assert caplog.records[0].levelno == logging.WARNING
    sender.close()
    receiver.close()


def test_torch_without_nccl_takes_the_hosts_memory_and_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nccl_link, "_is_available", lambda: False)
    sender, receiver = ends()
    assert caplog.messages == 2 * [
        "channel 'features-0-1' goes through the host's memory: this torch has no NCCL."
    ]
    sender.close()
    receiver.close()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (None, ChannelTimeout, r"'edge' within 0.01 s: NCCL_SOCKET_IFNAME .* \"shared\" takes"),
        (
            RuntimeError("ncclUnhandledCudaError"),
            ChannelError,
            r"(?s)'edge': ncclUnhandledCudaError\n.* \"shared\" takes",
        ),
    ],
    ids=["silence", "an error"],
)
def test_gpus_that_cannot_connect_are_an_error_with_a_way_out(
    error: Exception | None,
    kind: type[ChannelError],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over = threading.Event()

    def communicator(*_: object) -> None:
        if error is not None:
            raise error
        over.wait()

    monkeypatch.setattr(nccl_link, "_communicator", communicator)
    timeout_s = 0.01 if error is None else WAIT_S
    with pytest.raises(kind, match=message):
        nccl_link.connect(HashStore(), "edge", SENDER, nccl.GPU, timeout_s)
    over.set()
