"""Slots in a GPU's memory: filled by another process, in an order that only the GPU waits for.

::

    sender's stream      ──features──┐                          ┌─ flush: waits for the copy
    sender's side stream             └▶ wait freed ▶ copy ▶ record filled
                                                              header, over the socket
    receiver's stream                           wait filled ▶ train on the slot ▶ record freed
                                                              credit, over the socket

Every slot has two events, both made by the receiver on its device and known in both processes. An
event is waited for only after a header or a credit has told that it was recorded, so no wait can
miss it. The host never waits: what it hands on is a promise that the GPU keeps.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ppll.channels.cuda_runtime import HANDLE_BYTES, DeviceMemory, Unshareable
from ppll.channels.layout import Layout
from ppll.channels.memory import PROCESSOR, SlotTensors
from ppll.channels.side_stream import Side, SideCopies, SideStream
from ppll.errors import ProtocolError

__all__ = [
    "Event",
    "Memory",
    "ReceiverSlots",
    "Ring",
    "SenderSlots",
    "open_slots",
    "reserve_slots",
]

_UUID_BYTES: Final = 64
_EXPORT: Final = struct.Struct(f"<{HANDLE_BYTES}s{_UUID_BYTES}s")  # memory, device; then events


class Event(Protocol):
    """A ``torch.cuda.Event``."""

    def record(self, stream: Any) -> None:
        """Be over when everything queued on the stream so far is."""

    def wait(self, stream: Any) -> None:
        """Let what the stream gets from now on wait until it is over."""

    def query(self) -> bool:
        """Whether it is over; also where it was never recorded."""
        ...


class Memory(Protocol):
    """Where slots lie, such as ``DeviceMemory``."""

    @property
    def device(self) -> torch.device:
        """The device whose memory it is."""
        ...

    def tensor(self, offset: int, num_bytes: int) -> Tensor:
        """A part of it, uint8, in a storage of its own; it keeps the memory there."""
        ...

    def abandon(self) -> None:
        """Leave it to the end of the process."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Ring:
    """What both processes know.

    Attributes:
        memory: Where the slots lie.
        filled: Recorded by the sender when a slot is filled, one a slot.
        freed: Recorded by the receiver when it no longer reads a slot, one a slot.
    """

    memory: Memory
    filled: Sequence[Event]
    freed: Sequence[Event]

    def cut(self, slot_bytes: int) -> list[Tensor]:
        """The slots; each is a tensor of its own, so has a version counter of its own."""
        return [self.memory.tensor(i * slot_bytes, slot_bytes) for i in range(len(self.filled))]


_left: list[Ring] = []
"""What other processes may still use: an event that ends here is undefined there."""


class _RingSlots(SlotTensors):
    def __init__(self, ring: Ring, slot_bytes: int) -> None:
        super().__init__(ring.cut(slot_bytes), slot_bytes)
        self._ring: Ring | None = ring
        self._filled = ring.filled
        self._freed = ring.freed

    def is_idle(self) -> bool:
        """Whether no copy into the slots is on its way; not where the GPU no longer says so."""
        try:
            return self._are_over()
        except RuntimeError:  # the run fails of it, and must say so itself
            return False

    def _are_over(self) -> bool:
        raise NotImplementedError

    def abandon(self) -> None:
        """Leave memory and events to the end of the process: the other end may still use them."""
        if self._ring is not None:
            self._ring.memory.abandon()
            _left.append(self._ring)

    def close(self) -> None:
        """Let go of the slots."""
        super().close()
        self._ring, self._filled, self._freed = None, (), ()


class ReceiverSlots(_RingSlots):
    """The slots as the process that they belong to sees them.

    Args:
        ring: What both processes know.
        slot_bytes: Size of a slot.
        current: The stream that the caller works on.
    """

    def __init__(self, ring: Ring, slot_bytes: int, current: Callable[[], Any]) -> None:
        super().__init__(ring, slot_bytes)
        self._current = current

    def write(self, index: int, layout: Layout, tensors: Mapping[str, Tensor]) -> None:
        """Only the sender writes."""
        raise NotImplementedError

    def read(self, index: int, layout: Layout) -> dict[str, Tensor]:
        """The tensors that lie in a slot; what the caller queues from now on finds them there."""
        self._filled[index].wait(self._current())
        return super().read(index, layout)

    def give_back(self, index: int) -> None:
        """Let the sender fill a slot when what the caller has queued so far is done."""
        self._freed[index].record(self._current())

    def _are_over(self) -> bool:
        return all(event.query() for event in self._filled)


class SenderSlots(_RingSlots):
    """The slots as the process that fills them sees them.

    Args:
        ring: What both processes know.
        slot_bytes: Size of a slot.
        side: What copies.
        source: Device that tensors are copied from.
    """

    def __init__(self, ring: Ring, slot_bytes: int, side: Side, source: torch.device) -> None:
        super().__init__(ring, slot_bytes)
        self.source = source
        self._side = side
        self._copies = SideCopies(side)

    @torch.no_grad()
    def write(self, index: int, layout: Layout, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into a slot, some time; they are kept until ``flush``."""
        with self._copies.of(tensors):
            self._freed[index].wait(self._side.stream)
            for field in layout.fields:
                self._copy(self._view(index, field), tensors[field.name])
            self._filled[index].record(self._side.stream)

    def _copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def flush(self) -> None:
        """What the caller queues from now on comes after the copy, so it may change the source."""
        self._copies.flush()

    def _are_over(self) -> bool:
        return self._side.is_over()

    def close(self) -> None:
        """Let go of the slots."""
        self._copies.forget()
        super().close()


_ours: WeakValueDictionary[bytes, Ring] = WeakValueDictionary()
"""What this process has exported: CUDA opens a handle in other processes only."""


def reserve_slots(
    slot_bytes: int, num_slots: int, device: torch.device
) -> tuple[ReceiverSlots, bytes]:
    """Slots on a GPU, and what the sender opens them by.

    Raises:
        ChannelError: The GPU has not so much memory.
        Unshareable: Its memory cannot be exported.
    """
    memory = DeviceMemory.reserve(slot_bytes * num_slots, device)
    current = partial(torch.cuda.current_stream, device)
    events = [torch.cuda.Event(interprocess=True) for _ in range(2 * num_slots)]  # type: ignore[no-untyped-call]
    try:
        for event in events:
            event.record(current())  # makes it, on this device
        handles = b"".join(event.ipc_handle() for event in events)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise Unshareable(f"no event of {device} can be exported: {error}") from error
    export = _EXPORT.pack(memory.handle, _uuid(device)) + handles
    ring = _ours[export] = Ring(memory, events[:num_slots], events[num_slots:])
    return ReceiverSlots(ring, slot_bytes, current), export


def open_slots(export: bytes, slot_bytes: int, num_slots: int, source: torch.device) -> SenderSlots:
    """The slots of a receiver, filled from a device of this process.

    Raises:
        ProtocolError: This is no export of so many slots.
        Unshareable: They cannot be reached from here.
    """
    if len(export) != _EXPORT.size + 2 * num_slots * HANDLE_BYTES:
        raise ProtocolError(f"an export of {len(export)} bytes came for {num_slots} slots.")
    if source == PROCESSOR:
        raise Unshareable("the sender computes on no GPU.")
    ring = _ours.get(export) or _open(export, num_slots, source)
    return SenderSlots(ring, slot_bytes, SideStream(source, ring.memory.device), source)


def _open(export: bytes, num_slots: int, source: torch.device) -> Ring:
    handle, uuid = _EXPORT.unpack_from(export)
    device = _device_called(uuid.rstrip(b"\0"))
    if device != source and not torch.cuda.can_device_access_peer(source, device):
        raise Unshareable(f"{source} has no access to {device}.")
    size = HANDLE_BYTES
    handles = [export[i : i + size] for i in range(_EXPORT.size, len(export), size)]
    memory = DeviceMemory.open(handle, device)
    try:
        events = [torch.cuda.Event.from_ipc_handle(device, handle) for handle in handles]  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise Unshareable(f"an event of {device} cannot be opened: {error}") from error
    return Ring(memory, events[:num_slots], events[num_slots:])


def _uuid(device: torch.device) -> bytes:
    """A GPU's name in all processes, whatever each calls it."""
    return str(torch.cuda.get_device_properties(device).uuid).encode()


def _device_called(uuid: bytes) -> torch.device:
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        if _uuid(device) == uuid:
            return device
    raise Unshareable(f"GPU {uuid.decode(errors='replace')} is not visible to the sender.")
