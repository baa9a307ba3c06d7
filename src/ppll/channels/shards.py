"""A channel between stages with unlike numbers of replicas: one end here, several there.

::

               +--> replica 0 --+
    stage 0 ---+                +--> stage 2
     (Scatter) +--> replica 1 --+   (Gather)

A training message is cut along its first dimension into shards of nearly equal size, and shards are
joined in order. Evaluations go by the first replica alone, marks to all.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterator, Sequence

import torch

from ppll.channels.base import ReceiveEnd, SendEnd
from ppll.errors import ProtocolError
from ppll.message import Kind, Message, canonical

__all__ = ["Gather", "Scatter", "joined", "shards_of"]


class Scatter(SendEnd):
    """The end that messages enter which several replicas of the next stage share.

    Args:
        ends: To these replicas, in order.
    """

    def __init__(self, ends: Sequence[SendEnd]) -> None:
        super().__init__(ends[0].capacity)
        self._first, *self._others = ends
        self._num_to_others = 0
        self._in_copy: list[Message] = []

    @property
    def device(self) -> torch.device:
        """Where a message's tensors are copied from."""
        return self._first.device

    def ready(self) -> bool:
        """Whether all replicas have a free slot."""
        return all(end.ready() for end in self._ends)

    @property
    def fill(self) -> int:
        """Slots in use of the channel that is fullest."""
        return max(end.fill for end in self._ends)

    def flush(self) -> None:
        """Wait until the tensors of all messages sent have been copied."""
        for end in self._ends:
            end.flush()
        self._in_copy.clear()

    def close(self) -> None:
        """Let go of everything."""
        for end in self._ends:
            end.close()

    @property
    def _ends(self) -> list[SendEnd]:
        return [self._first, *self._others]

    def _wait(self, timeout_s: float | None) -> None:
        _wait_for_one(self._ends, timeout_s)

    def _put(self, message: Message) -> None:
        if message.kind is Kind.EVALUATE:
            self._first.send(message)
            return
        own, *parts = shards_of(message, len(self._ends))
        self._in_copy += [own, *parts]  # Nobody else keeps them until then.
        self._first.send(own)
        for end, part in zip(self._others, parts, strict=True):
            # Those that no evaluation comes to count what does.
            end.send(dataclasses.replace(part, sequence=self._num_to_others))
        self._num_to_others += 1


class Gather(ReceiveEnd):
    """The end that messages leave which several replicas of the stage before have made.

    Args:
        ends: From these replicas, in order.
    """

    def __init__(self, ends: Sequence[ReceiveEnd]) -> None:
        super().__init__(ends[0].capacity)
        self._first, *self._others = ends
        self._own: Message | None = None
        self._parts: deque[list[Message]] = deque()  # of messages in use, oldest first

    def ready(self) -> bool:
        """Whether all shards of the next message are there."""
        if self._own is None and self._first.ready():
            self._own = self._first.recv()
        if self._own is None:
            return False
        return self._own.kind is Kind.EVALUATE or all(end.ready() for end in self._others)

    @property
    def fill(self) -> int:
        """Slots in use of the channel that is fullest."""
        return max(end.fill for end in (self._first, *self._others))

    def close(self) -> None:
        """Let go of everything."""
        for end in (self._first, *self._others):
            end.close()

    def _wait(self, timeout_s: float | None) -> None:
        _wait_for_one([self._first] if self._own is None else self._others, timeout_s)

    def _take(self) -> Message:
        assert self._own is not None  # ready() has received it
        parts = [self._own]
        if self._own.kind is not Kind.EVALUATE:
            parts += [end.recv() for end in self._others]
        self._own = None
        self._parts.append(parts)
        return joined(parts)

    def _give_back(self) -> None:
        parts = self._parts.popleft()
        for end, part in zip((self._first, *self._others), parts, strict=False):
            end.release(part)


def _wait_for_one(ends: Sequence[SendEnd | ReceiveEnd], timeout_s: float | None) -> None:
    """Wait for the first end that is not ready; all may have become so meanwhile."""
    if missing := next((end for end in ends if not end.ready()), None):
        missing.wait(timeout_s)


def shards_of(message: Message, num_shards: int) -> Iterator[Message]:
    """A message for each of several replicas: a mark as it is, a training message in parts.

    Args:
        message: Of as many samples as there are shards, or more.
        num_shards: How many.
    """
    if not message.tensors:
        yield from itertools.repeat(message, num_shards)
        return
    num_samples = _num_samples(message)
    num_in_batch = round(num_samples / message.share)
    bounds = [num_samples * i // num_shards for i in range(num_shards + 1)]
    for start, end in itertools.pairwise(bounds):
        tensors = {name: canonical(t[start:end]) for name, t in message.tensors.items()}
        share = (end - start) / num_in_batch
        yield dataclasses.replace(message, tensors=tensors, share=share)


def joined(shards: Sequence[Message]) -> Message:
    """The message of which these are the shards; all else is as in the first.

    Raises:
        ProtocolError: They are not of one message.
    """
    first = shards[0]
    for shard in shards[1:]:
        if _place(shard) != _place(first):
            raise ProtocolError(f"{_place(shard)} came from a replica with {_place(first)}.")
    if len(shards) == 1 or not first.tensors:
        return first
    nums = [_num_samples(shard) for shard in shards]
    num_in_batch = round(nums[0] / first.share)
    # Shards from other hosts and from GPUs of this one may be on several devices.
    tensors = {
        name: canonical(torch.cat([shard.tensors[name].to(own.device) for shard in shards]))
        for name, own in first.tensors.items()
    }
    return dataclasses.replace(first, tensors=tensors, share=sum(nums) / num_in_batch)


def _num_samples(message: Message) -> int:
    return next(iter(message.tensors.values())).shape[0]


def _place(message: Message) -> str:
    """What a message is, for people."""
    fields = ", ".join(sorted(message.tensors))
    return f"{message.kind.name} of step {message.step}, message {message.part} ({fields})"
