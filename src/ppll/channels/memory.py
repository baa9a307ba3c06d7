"""Anonymous shared memory, cut into slots that tensors lie in.

Memory has no name that could be left behind: it is known by a descriptor, which one process hands
to another, and gone with the last process that maps it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Mapping
from typing import Final, Self

import torch
from torch import Tensor

from ppll.channels.layout import Field, Layout
from ppll.errors import ChannelError, ProtocolError
from ppll.limits import available_memory_bytes

__all__ = ["Slots", "reserve"]

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


class Slots:
    """Equal slots in one piece of shared memory.

    Each slot is one base tensor that all tensors in it are views of, so they share a version
    counter and keep the mapping alive for as long as one of them is used.

    Args:
        fd: Descriptor of the memory; it may be closed afterwards.
        slot_bytes: Size of a slot, a multiple of ``ALIGNMENT``.
        num_slots: How many slots there are.

    Raises:
        ProtocolError: The memory cannot be mapped or is smaller than that.
    """

    def __init__(self, fd: int, slot_bytes: int, num_slots: int) -> None:
        self.slot_bytes = slot_bytes
        try:
            # Checks the size, too: a page behind the end of the file would kill the process.
            memory = mmap.mmap(fd, slot_bytes * num_slots, flags=_MAP_FLAGS)
        except (OSError, ValueError, OverflowError) as error:
            raise ProtocolError(
                f"cannot map {num_slots} slots of {slot_bytes} bytes: {error}."
            ) from error
        # A tensor keeps the mapping alive, but would not stop ``memory.close`` from unmapping it
        # under the tensor; therefore it is never closed, only forgotten.
        self._slots = [
            torch.frombuffer(memory, dtype=torch.uint8, offset=i * slot_bytes, count=slot_bytes)
            for i in range(num_slots)
        ]
        self._typed: list[dict[torch.dtype, Tensor]] = [{} for _ in self._slots]

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

    def raw(self, index: int) -> Tensor:
        """A slot's bytes, uint8, without a copy."""
        return self._slots[index]

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

    def read(self, index: int, layout: Layout) -> dict[str, Tensor]:
        """The tensors that lie in a slot, without a copy; ``layout`` must fit."""
        return {field.name: self._view(index, field) for field in layout.fields}

    @torch.no_grad()
    def poison(self, index: int) -> None:
        """Set every bit of a slot: NaN for every kind of float."""
        self._slots[index].fill_(0xFF)

    def close(self) -> None:
        """Forget the memory; it is unmapped when the last tensor that lies in it is gone."""
        self._slots.clear()
        self._typed.clear()

    def _view(self, index: int, field: Field) -> Tensor:
        typed = self._typed[index].get(field.dtype)
        if typed is None:
            typed = self._typed[index][field.dtype] = self._slots[index].view(field.dtype)
        return typed.as_strided(field.shape, field.strides, field.offset // field.dtype.itemsize)
