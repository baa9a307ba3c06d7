"""The header of a message on the wire: fixed in size, checked before anything is believed.

::

    prefix   magic, version, kind, number of fields, own memory, new slots, part, number of parts,
             share, sequence, step, epoch, saved step, split
    field 0  name, dtype, number of dimensions, shape, strides, offset, bytes
    ...
    field 15

Fields that are not there are zero.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from torch import Tensor

from ppll.channels.layout import (
    FIELD_BYTES,
    MAX_FIELDS,
    NAME_BYTES,
    Layout,
    expect,
    pack_name,
    unpack_layout,
    unpack_name,
)
from ppll.message import Kind, Message

__all__ = [
    "HEADER_BYTES",
    "MAGIC",
    "MAX_PARTS",
    "VERSION",
    "Header",
    "header_bytes",
    "pack_header",
    "unpack_header",
]

MAGIC: Final = b"PPLL"
VERSION: Final = 5
MAX_PARTS: Final = 2**16 - 1
_PREFIX: Final = struct.Struct(f"<4sHBBBBHH2xdqqqq{NAME_BYTES}s")
HEADER_BYTES: Final = _PREFIX.size + MAX_FIELDS * FIELD_BYTES

_KINDS: Final = {kind.value: kind for kind in Kind}


class Header(NamedTuple):
    """A header as it was received; the first nine are those of ``Message``.

    Attributes:
        layout: The tensors and where they lie.
        own_memory: Whether they lie in memory that came with the header instead of a slot.
        new_slots: Whether the memory that came with the header takes the place of all slots.
    """

    kind: Kind
    sequence: int
    step: int
    epoch: int
    saved_step: int
    split: str
    part: int
    num_parts: int
    share: float
    layout: Layout
    own_memory: bool
    new_slots: bool

    def message(self, tensors: Mapping[str, Tensor]) -> Message:
        """The message, with the tensors that were read where ``layout`` says."""
        return Message(
            kind=self.kind,
            sequence=self.sequence,
            step=self.step,
            epoch=self.epoch,
            split=self.split,
            part=self.part,
            num_parts=self.num_parts,
            share=self.share,
            saved_step=self.saved_step,
            tensors=tensors,
        )


def pack_header(
    buffer: bytearray,
    message: Message,
    layout: Layout,
    *,
    own_memory: bool = False,
    new_slots: bool = False,
) -> None:
    """Write a message's header over ``buffer``, which is ``HEADER_BYTES`` long.

    Raises:
        ChannelError: The name of the split is not short ASCII.
    """
    _PREFIX.pack_into(
        buffer,
        0,
        MAGIC,
        VERSION,
        message.kind,
        len(layout.fields),
        own_memory,
        new_slots,
        message.part,
        message.num_parts,
        message.share,
        message.sequence,
        message.step,
        message.epoch,
        message.saved_step,
        pack_name(message.split),
    )
    # What is behind the fields is left from an earlier message, and not read.
    buffer[_PREFIX.size : _PREFIX.size + len(layout.packed)] = layout.packed


def header_bytes(layout: Layout) -> int:
    """What must travel of a header: what is behind the last field is not read."""
    return _PREFIX.size + len(layout.packed)


def unpack_header(buffer: memoryview) -> Header:
    """Read a header and check everything that can be checked without the slot.

    The caller checks that ``layout.extent_bytes`` fits the memory.

    Raises:
        ProtocolError: It is not a valid header.
    """
    magic, version, kind, num_fields, *numbers, split = _PREFIX.unpack_from(buffer)
    own_memory, new_slots, part, num_parts, share, sequence, step, epoch, saved_step = numbers
    expect(magic == MAGIC, "magic", magic, MAGIC)
    expect(version == VERSION, "version", version, VERSION)
    expect(kind in _KINDS, "kind", kind, f"one of {list(_KINDS)}")
    expect(num_fields <= MAX_FIELDS, "number of tensors", num_fields, f"at most {MAX_FIELDS}")
    expect(own_memory <= 1, "own-memory flag", own_memory, "0 or 1")
    expect(new_slots <= 1 - own_memory, "new-slots flag", new_slots, "0, or 1 alone")
    expect(part < num_parts, "part", part, f"below {num_parts}")
    expect(0 < share <= 1, "share", share, "above 0, at most 1")
    packed = bytes(buffer[_PREFIX.size : _PREFIX.size + num_fields * FIELD_BYTES])
    return Header(
        _KINDS[kind],
        sequence,
        step,
        epoch,
        saved_step,
        unpack_name(split),
        part,
        num_parts,
        share,
        unpack_layout(packed),
        bool(own_memory),
        bool(new_slots),
    )
