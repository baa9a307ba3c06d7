"""Slots that tensors lie in, and the anonymous shared memory of the host that they are cut from.

Memory has no name that could be left behind: it is known by a descriptor, which one process hands
to another, and gone with the last process that maps it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Final, Self

import torch
from torch import Tensor

from ppll.channels.cuda_runtime import pin, unpin
from ppll.channels.layout import Field, Layout
from ppll.errors import ChannelError, ProtocolError
from ppll.limits import available_memory_bytes

__all__ = ["PROCESSOR", "SlotTensors", "Slots", "reserve"]

PROCESSOR: Final = torch.device("cpu")

# Page tables are filled at once, or the first messages would take a fault for every page.
_MAP_FLAGS: Final = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)


def reserve(num_bytes: int) -> int:
    """Reserve anonymous shared memory and return its descriptor, which the caller closes.

    The memory is really there afterwards: a file can be given any size, and touching a page that
    the machine has not would kill the process.

    Raises:
        ChannelError: There is not so much memory.
    """
    available = available_memory_bytes()
    if available is not None and num_bytes > available:
        raise ChannelError(_shortage(num_bytes, available))
    fd = _anonymous_file()
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, num_bytes)
        else:
            os.ftruncate(fd, num_bytes)
    except OSError as error:
        os.close(fd)
        raise ChannelError(_shortage(num_bytes, available)) from error
    return fd


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("ppll")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _shortage(num_bytes: int, available: int | None) -> str:
    there = "less" if available is None else f"{available / 2**20:,.0f} MiB"
    return (
        f"cannot reserve {num_bytes / 2**20:,.0f} MiB of shared memory: there is {there}. "
        "Lower runtime.capacity or data.batch_size."
    )


class SlotTensors:
    """Equal slots, wherever they lie.

    Each slot is one base tensor that all tensors in it are views of, so they share a version
    counter and keep the memory alive for as long as one of them is used.

    Args:
        slots: Bytes of each.
        slot_bytes: How many those are, a multiple of ``DEVICE_ALIGNMENT``.
    """

    source = PROCESSOR
    """Where tensors must be that are written."""

    def __init__(self, slots: Sequence[Tensor], slot_bytes: int) -> None:
        self.slot_bytes = slot_bytes
        self._slots = list(slots)
        self._typed: list[dict[torch.dtype, Tensor]] = [{} for _ in slots]

    def raw(self, index: int) -> Tensor:
        """A slot's bytes, uint8, without a copy."""
        return self._slots[index]

    def write(self, index: int, layout: Layout, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into a slot; ``layout`` must be theirs and fit."""
        raise NotImplementedError

    def flush(self) -> None:
        """Let what was written be changed by what its caller does next."""

    def read(self, index: int, layout: Layout) -> dict[str, Tensor]:
        """The tensors that lie in a slot, without a copy; ``layout`` must fit."""
        return {field.name: self._view(index, field) for field in layout.fields}

    @torch.no_grad()
    def poison(self, index: int) -> None:
        """Set every bit of a slot: NaN for every kind of float."""
        self._slots[index].fill_(0xFF)

    def give_back(self, index: int) -> None:
        """Say that a slot is no longer read, before the other end is told."""

    def is_idle(self) -> bool:
        """Whether no copy into the slots is on its way."""
        return True

    def abandon(self) -> None:
        """Do not wait for others when the memory goes."""

    def close(self) -> None:
        """Forget the memory; it is gone when the last tensor that lies in it is."""
        self._slots.clear()
        self._typed.clear()

    def _view(self, index: int, field: Field) -> Tensor:
        typed = self._typed[index].get(field.dtype)
        if typed is None:
            typed = self._typed[index][field.dtype] = self._slots[index].view(field.dtype)
        return typed.as_strided(field.shape, field.strides, field.offset // field.dtype.itemsize)


class _Mapping(mmap.mmap):
    """A mapping that GPUs may read directly while it is there."""

    pinned_at = 0

    def pin(self, address: int) -> None:
        self.pinned_at = address if pin(address, len(self)) else 0

    def __del__(self) -> None:
        if self.pinned_at:
            unpin(self.pinned_at)


class Slots(SlotTensors):
    """Equal slots in one piece of shared memory of the host.

    Args:
        fd: Descriptor of the memory; it may be closed afterwards.
        slot_bytes: Size of a slot, a multiple of ``DEVICE_ALIGNMENT``.
        num_slots: How many slots there are.
        pinned: Let GPUs copy from it directly, where CUDA agrees.

    Raises:
        ProtocolError: The memory cannot be mapped or is smaller than that.
    """

    def __init__(self, fd: int, slot_bytes: int, num_slots: int, *, pinned: bool = False) -> None:
        try:
            # Checks the size, too: a page behind the end of the file would kill the process.
            memory = _Mapping(fd, slot_bytes * num_slots, flags=_MAP_FLAGS)
        except (OSError, ValueError, OverflowError) as error:
            raise ProtocolError(
                f"cannot map {num_slots} slots of {slot_bytes} bytes: {error}."
            ) from error
        # A tensor keeps the mapping alive, but would not stop ``memory.close`` from unmapping it
        # under the tensor; therefore it is never closed, only forgotten.
        super().__init__(
            [
                torch.frombuffer(memory, dtype=torch.uint8, offset=i * slot_bytes, count=slot_bytes)
                for i in range(num_slots)
            ],
            slot_bytes,
        )
        if pinned:
            memory.pin(self._slots[0].data_ptr())

    @classmethod
    def reserve(cls, slot_bytes: int, num_slots: int) -> Self:
        """Slots in memory of their own.

        Raises:
            ChannelError: There is not so much memory.
        """
        fd = reserve(slot_bytes * num_slots)
        try:
            return cls(fd, slot_bytes, num_slots)
        finally:
            os.close(fd)

    def write(self, index: int, layout: Layout, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into a slot; ``layout`` must be theirs and fit."""
        for field in layout.fields:
            source = tensors[field.name]
            if source.stride() != field.strides:
                self._view(index, field).copy_(source)
            else:
                # Dense and of the same strides: the bytes are in the same order. ``copy_`` would
                # take all cores when it is called in a thread of its own.
                target = self._slots[index].data_ptr() + field.offset
                ctypes.memmove(target, source.data_ptr(), source.nbytes)
