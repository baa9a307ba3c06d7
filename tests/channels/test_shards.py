"""Messages between stages with unlike numbers of replicas: cut into shards, joined in order."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppll.channels.local import local_channel
from ppll.channels.shards import Gather, Scatter, joined, shards_of
from ppll.errors import ChannelClosed, ProtocolError
from ppll.message import Kind, Message

WAIT_S = 20.0  # what nobody waits for unless something is broken


def message(sequence: int, kind: Kind = Kind.TRAIN, num: int = 5, share: float = 1.0) -> Message:
    if kind not in (Kind.TRAIN, Kind.EVALUATE):
        return Message(kind=kind, sequence=sequence, step=sequence)
    features = torch.arange(num * 12.0).view(num, 3, 2, 2) + 1000 * sequence
    tensors = {"features": features, "targets": torch.arange(num)}
    return Message(kind=kind, sequence=sequence, step=sequence, share=share, tensors=tensors)


def between(num: int, capacity: int = 2, *, poison: bool = True) -> tuple[Scatter, Gather]:
    """A stage's outbox to replicas that pass on what they get, and the inbox behind them."""
    channels = [local_channel(capacity, poison=poison) for _ in range(num)]
    return Scatter([s for s, _ in channels]), Gather([r for _, r in channels])


def equal(one: Message, other: Message) -> bool:
    """But for their numbers."""
    same = dataclasses.replace(one, tensors={}, sequence=0) == dataclasses.replace(
        other, tensors={}, sequence=0
    )
    tensors = zip(one.tensors.items(), other.tensors.items(), strict=True)
    return same and all(n == m and torch.equal(t, u) for (n, t), (m, u) in tensors)


@given(st.integers(1, 6), st.integers(0, 20), st.integers(0, 30))
def test_shards_are_the_message_again(num_shards: int, more: int, elsewhere: int) -> None:
    """Of nearly equal size, and each says which share of the batch it is, exactly."""
    num = num_shards + more
    whole = message(3, num=num, share=num / (num + elsewhere))
    shards = list(shards_of(whole, num_shards))
    sizes = [len(shard.targets) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    assert [shard.share for shard in shards] == [size / (num + elsewhere) for size in sizes]
    assert equal(joined(shards), whole)


def test_shards_of_channels_last_keep_their_strides() -> None:
    whole = message(0, num=4)
    whole = whole.with_tensors(features=whole.features.to(memory_format=torch.channels_last))
    shards = list(shards_of(whole, 2))
    assert [shard.features.stride() for shard in shards] == [(12, 1, 6, 3)] * 2
    assert joined(shards).features.stride() == whole.features.stride()


def test_every_replica_gets_its_shard_and_every_mark() -> None:
    """Evaluations are the first one's, whose messages keep their numbers; others count theirs."""
    channels = [local_channel(8) for _ in range(3)]
    outbox = Scatter([sender for sender, _ in channels])
    kinds = [Kind.TRAIN, Kind.EVALUATION_BEGIN, Kind.EVALUATE, Kind.EVALUATION_END, Kind.STOP]
    for sequence, kind in enumerate(kinds, start=7):
        outbox.send(message(sequence, kind))
    got = [[end.recv() for _ in range(end.fill)] for _, end in channels]
    assert [[(m.kind, m.sequence) for m in row] for row in got[1:]] == [
        [(Kind.TRAIN, 0), (Kind.EVALUATION_BEGIN, 1), (Kind.EVALUATION_END, 2), (Kind.STOP, 3)]
    ] * 2
    assert [(m.kind, m.sequence) for m in got[0]] == list(zip(kinds, range(7, 12), strict=True))
    assert [len(row[0].targets) for row in got] == [1, 2, 2]
    assert len(got[0][2].targets) == 5


@pytest.mark.parametrize("num", [2, 3])
@pytest.mark.parametrize("capacity", [1, 3])
def test_what_is_cut_is_joined(num: int, capacity: int) -> None:
    """In order, for as long as a slot is not given back, with more messages than fit."""
    outbox, inbox = between(num, capacity)
    kinds = [Kind.CHECKPOINT, *[Kind.TRAIN] * 5, Kind.EVALUATE, Kind.EVALUATION_END, Kind.STOP]
    sent = [message(i, kind, num=num + i) for i, kind in enumerate(kinds)]
    thread = threading.Thread(target=lambda: [outbox.send(m, WAIT_S) for m in sent])
    thread.start()
    for whole in sent:
        found = inbox.recv(WAIT_S)
        assert found.sequence == whole.sequence
        assert equal(found, whole)
        assert all(t.data_ptr() % 64 == 0 for t in found.tensors.values())
        inbox.release(found)
    thread.join(WAIT_S)
    assert not inbox.ready()
    assert (outbox.fill, inbox.fill) == (0, 0)
    assert inbox.statistics.messages == outbox.statistics.messages == len(sent)


def test_a_full_or_empty_replica_is_waited_for() -> None:
    channels = [local_channel(1) for _ in range(2)]
    outbox, inbox = Scatter([s for s, _ in channels]), Gather([r for _, r in channels])
    channels[1][0].send(message(0))
    assert not outbox.ready()
    assert not outbox.wait(0.0)
    channels[1][1].release(channels[1][1].recv())
    assert outbox.ready()
    channels[0][0].send(message(0))
    assert not inbox.wait(0.0)
    channels[1][0].send(message(1))
    assert inbox.wait(0.0)


def test_ends_that_become_ready_before_they_are_waited_for() -> None:
    channels = [local_channel(1) for _ in range(2)]
    outbox, inbox = Scatter([s for s, _ in channels]), Gather([r for _, r in channels])
    outbox._wait(0.0)
    outbox.send(message(0))
    assert inbox.ready()
    inbox._wait(0.0)


@pytest.mark.parametrize("which", [0, 1])
def test_a_replica_that_is_gone_is_seen(which: int) -> None:
    channels = [local_channel(2) for _ in range(2)]
    channels[which][1].close()
    outbox = Scatter([sender for sender, _ in channels])
    with pytest.raises(ChannelClosed, match="receiver is gone"):
        outbox.send(message(0), WAIT_S)
    channels = [local_channel(2) for _ in range(2)]
    inbox = Gather([r for _, r in channels])
    channels[1 - which][0].send(message(0))
    channels[which][0].close()
    with pytest.raises(ChannelClosed, match="sender is gone"):
        inbox.recv(WAIT_S)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (message(4), "TRAIN of step 4, message 0"),
        (message(3, Kind.CHECKPOINT), "CHECKPOINT of step 3"),
        (dataclasses.replace(message(3), part=1, num_parts=2), "TRAIN of step 3, message 1"),
        (message(3).with_tensors(late=torch.zeros(5)), "late, targets"),
    ],
)
def test_shards_of_other_messages_are_refused(other: Message, told: str) -> None:
    with pytest.raises(ProtocolError, match=told):
        joined([message(3), other])


def fields(messages: Sequence[Message]) -> list[int]:
    return [len(m.tensors["late"]) for m in messages]


def test_second_parts_have_no_targets() -> None:
    late = dataclasses.replace(message(2), tensors={"late": torch.arange(7.0)})
    shards = list(shards_of(late, 2))
    assert fields(shards) == [3, 4]
    assert equal(joined(shards), late)
