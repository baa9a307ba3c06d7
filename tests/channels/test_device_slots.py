"""Slots in a GPU's memory, as far as a processor can show it: order, fallback, refusals."""

from __future__ import annotations

import contextlib
import gc
import logging
import random
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppll.channels import cuda_runtime, greeting
from ppll.channels.base import SlotLayout
from ppll.channels.cuda_runtime import DeviceMemory, Unshareable, pin
from ppll.channels.device_slots import open_slots
from ppll.channels.layout import layout_of
from ppll.channels.memory import Slots
from ppll.channels.shared import SharedReceiveEnd, SharedSendEnd
from ppll.errors import ProtocolError
from ppll.message import Kind, Message
from tests.channels.devices import PROCESSOR, Device

WAIT_S = 20.0
SECRET = bytes(32)
SLOT_BYTES = 256
NOT_PROCESSOR = torch.device("cpu", 0)
"""The processor by another name, which passes for a GPU here."""


# Order


def pass_messages(
    device: Device, capacity: int, num_messages: int, chance: random.Random
) -> tuple[list[Tensor], list[Tensor]]:
    """What the sender computed, and what the receiver read, on a device that dawdles.

    Both hosts run as far ahead as headers and credits allow, in any order.
    """
    layout = layout_of({"features": torch.zeros(8)})
    sent: list[Tensor] = []
    read: list[Tensor] = []
    num_received = num_released = 0
    while num_released < num_messages:
        action = chance.choice(("send", "recv", "release", "device"))
        if action == "send" and len(sent) < min(num_messages, num_released + capacity):
            features, number = torch.zeros(8), float(len(sent) + 1)
            device.sending.add(lambda f=features, n=number: f.fill_(n))
            device.sender.write(len(sent) % capacity, layout, {"features": features})
            sent.append(torch.full((8,), number))
            if chance.random() < 0.5:
                device.sender.flush()
                # The memory is another's now: it comes after the copy in the order of streams.
                device.sending.add(lambda f=features: f.fill_(-1.0))
        elif action == "recv" and num_received < len(sent):
            slot = device.receiver.read(num_received % capacity, layout)["features"]
            device.receiving.add(lambda s=slot: read.append(s.clone()))
            num_received += 1
        elif action == "release" and num_released < num_received:
            index = num_released % capacity
            device.receiving.add(lambda i=index: device.receiver.poison(i))
            device.receiver.give_back(index)
            num_released += 1
        elif action == "device":
            device.step(chance)
    device.finish(chance)
    return sent, read


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(0, 2**32))
def test_events_keep_every_message_whole_in_any_order(capacity: int, seed: int) -> None:
    device = Device(SLOT_BYTES, capacity)
    sent, read = pass_messages(device, capacity, 8, random.Random(seed))
    assert torch.equal(torch.stack(read), torch.stack(sent))
    assert device.sender.is_idle()
    assert device.receiver.is_idle()


@pytest.mark.parametrize("missing", ["filled", "freed", "flush"])
def test_without_one_of_the_orders_messages_go_wrong(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above would notice."""
    wrong = 0
    for seed in range(50):
        device = Device(SLOT_BYTES, 2)
        if missing == "flush":
            monkeypatch.setattr(device.side, "hold_caller", lambda: None)
        else:
            for event in getattr(device.sender, f"_{missing}"):
                monkeypatch.setattr(event, "wait", lambda stream: None)
        sent, read = pass_messages(device, 2, 8, random.Random(seed))
        wrong += not torch.equal(torch.stack(read), torch.stack(sent))
    assert wrong


def test_tensors_are_kept_until_they_are_flushed() -> None:
    device = Device(SLOT_BYTES, 2)
    layout = layout_of({"features": torch.zeros(8)})
    device.sender.write(0, layout, {"features": torch.ones(8)})
    assert device.sender._copies._copied is not None
    assert not device.sender.is_idle()
    device.sender.flush()
    assert device.sender._copies._copied is None
    device.finish(random.Random(0))
    assert device.sender.is_idle()


def test_memory_that_may_still_be_used_is_left_to_the_end_of_the_process() -> None:
    device = Device(SLOT_BYTES, 2)
    event = weakref.ref(device.receiver._filled[0])
    device.receiver.abandon()
    assert device.memory.is_abandoned
    device.receiver.close()
    device.receiver.abandon()  # nothing is left to do
    del device
    gc.collect()
    assert event() is not None  # whoever opened it may wait for it


def test_gpu_that_has_failed_is_not_idle_and_hides_no_first_cause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> bool:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    device = Device(SLOT_BYTES, 2)
    monkeypatch.setattr(device.side, "is_over", fail)
    assert not device.sender.is_idle()


# The way through the host


@pytest.fixture
def a_gpu_that_nobody_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    def reserve_slots(slot_bytes: int, num_slots: int, device: torch.device) -> object:
        assert device == NOT_PROCESSOR
        return Device(slot_bytes, num_slots).receiver, bytes(128 + 128 * num_slots)

    monkeypatch.setattr(greeting, "reserve_slots", reserve_slots)


def open_channel(path: Path) -> tuple[SharedSendEnd, SharedReceiveEnd]:
    layout = SlotLayout({"features": 4096})
    receiver = SharedReceiveEnd.listen(path, layout, 2, SECRET, device=NOT_PROCESSOR)
    sender = SharedSendEnd.connect(path, SECRET, WAIT_S)
    receiver.accept(WAIT_S)
    return sender, receiver


def pass_some(sender: SharedSendEnd, receiver: SharedReceiveEnd) -> None:
    for sequence, num_elements in enumerate([5000, 3, 0, 1000, 5000, 3]):
        features = torch.rand(num_elements)
        tensors = {"features": features} if num_elements else {}
        sent = Message(kind=Kind.TRAIN, sequence=sequence, step=sequence, tensors=tensors)
        sender.send(sent, WAIT_S)
        arrived = receiver.recv(WAIT_S)
        assert arrived.tensors.keys() == tensors.keys()
        if tensors:
            assert torch.equal(arrived.features, features)
        receiver.release(arrived)
    assert sender.statistics.oversized == receiver.statistics.oversized == 2
    sender.close()
    receiver.close()


@pytest.mark.usefixtures("a_gpu_that_nobody_reaches")
def test_sender_that_cannot_reach_the_slots_sends_others_and_says_so_once(
    paths: Iterator[Path], caplog: pytest.LogCaptureFixture
) -> None:
    sender, receiver = open_channel(next(paths))
    pass_some(sender, receiver)
    assert isinstance(receiver._slots, Slots)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "through pinned memory of the host: the sender computes on no GPU" in caplog.text


@pytest.mark.usefixtures("a_gpu_that_nobody_reaches")
def test_sender_that_ends_before_it_sends_closes_what_it_reserved(paths: Iterator[Path]) -> None:
    sender, receiver = open_channel(next(paths))
    assert sender.ready()
    assert sender._new_memory >= 0
    sender.close()
    assert sender._new_memory == -1
    receiver.close()


def test_receiver_that_can_export_nothing_offers_the_hosts_memory_and_says_so_once(
    paths: Iterator[Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise Unshareable("no handles are to be had.")

    monkeypatch.setattr(greeting, "reserve_slots", refuse)
    pass_some(*open_channel(next(paths)))
    assert caplog.messages == [
        "messages come through pinned memory of the host: no handles are to be had."
    ]


def test_new_slots_that_nobody_needs_are_refused(paths: Iterator[Path]) -> None:
    path = next(paths)
    receiver = SharedReceiveEnd.listen(path, SlotLayout({"features": 64}), 2, SECRET)
    sender = SharedSendEnd.connect(path, SECRET, WAIT_S)
    receiver.accept(WAIT_S)
    assert sender.ready()
    sender._new_memory = 0  # the standard input, which goes along as a descriptor
    sender._close_new_memory = lambda: None  # type: ignore[method-assign]
    sender.send(Message(kind=Kind.TRAIN, sequence=0, step=0), WAIT_S)
    with pytest.raises(ProtocolError, match="sent new slots, but has reached the old ones"):
        receiver.recv(WAIT_S)
    sender._new_memory = -1
    sender.close()
    receiver.close()


# Refusals


def test_export_of_another_size_is_refused() -> None:
    with pytest.raises(ProtocolError, match="an export of 7 bytes came for 2 slots"):
        open_slots(bytes(7), SLOT_BYTES, 2, PROCESSOR)


def test_runtime_that_is_not_there_shares_and_pins_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda_runtime._runtime.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", "0.1")
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    with pytest.raises(Unshareable, match=r"cannot load libcudart\.so\.0"):
        DeviceMemory.open(bytes(64), torch.device("cuda", 0))
    assert not pin(4096, 4096)
