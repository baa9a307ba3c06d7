"""The header of a message on the wire: fixed in size, checked before anything is believed.

::

    prefix   magic, version, kind, number of fields, own memory, part, number of parts, share,
             sequence, step, epoch, saved step, split
    field 0  name, dtype, number of dimensions, shape, strides, offset, bytes
    ...
    field 7

Fields that are not there are zero. Successive messages have the same fields nearly always, so
both directions remember the layouts they have seen.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ppll.errors import ChannelError, ProtocolError
from ppll.message import ALIGNMENT, Kind, Message, is_dense

__all__ = [
    "HEADER_BYTES",
    "MAGIC",
    "MAX_DIMENSIONS",
    "MAX_FIELDS",
    "MAX_PARTS",
    "VERSION",
    "Field",
    "Header",
    "Layout",
    "layout_of",
    "pack_header",
    "unpack_header",
]

MAGIC: Final = b"PPLL"
VERSION: Final = 2
MAX_PARTS: Final = 2**16 - 1
MAX_FIELDS: Final = 8
MAX_DIMENSIONS: Final = 8
_NAME_BYTES: Final = 16

_PREFIX: Final = struct.Struct(f"<4sHBBBxHH2xdqqqq{_NAME_BYTES}s")
_FIELD: Final = struct.Struct(f"<{_NAME_BYTES}sBB6x{MAX_DIMENSIONS}q{MAX_DIMENSIONS}qqq")
HEADER_BYTES: Final = _PREFIX.size + MAX_FIELDS * _FIELD.size

_DTYPES: Final = {
    1: torch.float64,
    2: torch.float32,
    3: torch.float16,
    4: torch.bfloat16,
    5: torch.int64,
    6: torch.int32,
    7: torch.int16,
    8: torch.int8,
    9: torch.uint8,
    10: torch.bool,
    11: torch.uint16,
    12: torch.uint32,
    13: torch.uint64,
}
_DTYPE_CODES: Final = {dtype: code for code, dtype in _DTYPES.items()}
_KINDS: Final = {kind.value: kind for kind in Kind}
_LARGEST: Final = 2**63 - 1  # of what torch counts elements and bytes in

_Form: TypeAlias = tuple[str, torch.dtype, tuple[int, ...], tuple[int, ...]]


class Field(NamedTuple):
    """A tensor of a message: what it is and where it lies.

    Attributes:
        name: Name of the field.
        dtype: Type of its elements.
        shape: Its shape.
        strides: Its strides, in elements; dense.
        offset: Its start in bytes from the start of the slot, a multiple of ``ALIGNMENT``.
        num_bytes: Its size.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    num_bytes: int


class Layout(NamedTuple):
    """The tensors of a message.

    Attributes:
        fields: Every tensor, in the order of the message.
        extent_bytes: What they take together, a multiple of ``ALIGNMENT``.
        packed: The fields as they stand in the header.
    """

    fields: tuple[Field, ...]
    extent_bytes: int
    packed: bytes


class Header(NamedTuple):
    """A header as it was received; the first nine are those of ``Message``.

    Attributes:
        layout: The tensors and where they lie.
        own_memory: Whether they lie in memory that came with the header instead of a slot.
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


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    """Where to put tensors in a slot: one after the other, each without gaps.

    Raises:
        ChannelError: They cannot be described: too many tensors or dimensions, a name that is not
            short ASCII, or a dtype that does not travel.
    """
    return _layout_of(
        tuple((name, t.dtype, tuple(t.shape), _dense_strides(t)) for name, t in tensors.items())
    )


def _dense_strides(tensor: Tensor) -> tuple[int, ...]:
    if is_dense(tensor):
        return tensor.stride()
    return torch.empty(tensor.shape, device="meta").stride()


@lru_cache(maxsize=256)
def _layout_of(forms: tuple[_Form, ...]) -> Layout:
    _check_travels(forms)
    fields = []
    offset = 0
    for name, dtype, shape, strides in forms:
        field = Field(name, dtype, shape, strides, offset, math.prod(shape) * dtype.itemsize)
        fields.append(field)
        offset = _aligned(offset + field.num_bytes)
    return Layout(tuple(fields), offset, b"".join(map(_pack_field, fields)))


def _check_travels(forms: tuple[_Form, ...]) -> None:
    if len(forms) > MAX_FIELDS:
        raise ChannelError(f"a message holds at most {MAX_FIELDS} tensors, not {len(forms)}.")
    for name, dtype, shape, _ in forms:
        if dtype not in _DTYPE_CODES:
            known = ", ".join(str(known) for known in _DTYPE_CODES)
            raise ChannelError(f"field {name!r}: {dtype} does not travel. Known: {known}.")
        if len(shape) > MAX_DIMENSIONS:
            raise ChannelError(
                f"field {name!r} has {len(shape)} dimensions, at most {MAX_DIMENSIONS} travel."
            )


def _pack_field(field: Field) -> bytes:
    padding = (0,) * (MAX_DIMENSIONS - len(field.shape))
    return _FIELD.pack(
        _pack_name(field.name),
        _DTYPE_CODES[field.dtype],
        len(field.shape),
        *field.shape,
        *padding,
        *field.strides,
        *padding,
        field.offset,
        field.num_bytes,
    )


@lru_cache(maxsize=256)
def _pack_name(name: str) -> bytes:
    if not name.isascii() or "\0" in name or len(name) > _NAME_BYTES:
        raise ChannelError(f"{name!r} does not travel; use at most {_NAME_BYTES} ASCII characters.")
    return name.encode()


def pack_header(
    buffer: bytearray, message: Message, layout: Layout, *, own_memory: bool = False
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
        message.part,
        message.num_parts,
        message.share,
        message.sequence,
        message.step,
        message.epoch,
        message.saved_step,
        _pack_name(message.split),
    )
    # What is behind the fields is left from an earlier message, and not read.
    buffer[_PREFIX.size : _PREFIX.size + len(layout.packed)] = layout.packed


def unpack_header(buffer: memoryview) -> Header:
    """Read a header and check everything that can be checked without the slot.

    The caller checks that ``layout.extent_bytes`` fits the memory.

    Raises:
        ProtocolError: It is not a valid header.
    """
    magic, version, kind, num_fields, own_memory, *numbers, split = _PREFIX.unpack_from(buffer)
    part, num_parts, share, sequence, step, epoch, saved_step = numbers
    _expect(magic == MAGIC, "magic", magic, MAGIC)
    _expect(version == VERSION, "version", version, VERSION)
    _expect(kind in _KINDS, "kind", kind, f"one of {list(_KINDS)}")
    _expect(num_fields <= MAX_FIELDS, "number of tensors", num_fields, f"at most {MAX_FIELDS}")
    _expect(own_memory <= 1, "own-memory flag", own_memory, "0 or 1")
    _expect(part < num_parts, "part", part, f"below {num_parts}")
    _expect(0 < share <= 1, "share", share, "above 0, at most 1")
    packed = bytes(buffer[_PREFIX.size : _PREFIX.size + num_fields * _FIELD.size])
    return Header(
        _KINDS[kind],
        sequence,
        step,
        epoch,
        saved_step,
        _unpack_name(split),
        part,
        num_parts,
        share,
        _unpack_layout(packed),
        bool(own_memory),
    )


@lru_cache(maxsize=256)
def _unpack_layout(packed: bytes) -> Layout:
    fields = tuple(_unpack_field(*values) for values in _FIELD.iter_unpack(packed))
    names = [field.name for field in fields]
    _expect(len(set(names)) == len(names), "field names", names, "all different")
    extent = max((field.offset + field.num_bytes for field in fields), default=0)
    return Layout(fields, _aligned(extent), packed)


def _unpack_field(packed_name: bytes, code: int, num_dimensions: int, *numbers: int) -> Field:
    name = _unpack_name(packed_name)
    _expect(code in _DTYPES, f"dtype code of {name!r}", code, f"one of {list(_DTYPES)}")
    _expect(
        num_dimensions <= MAX_DIMENSIONS,
        f"number of dimensions of {name!r}",
        num_dimensions,
        f"at most {MAX_DIMENSIONS}",
    )
    shape = numbers[:num_dimensions]
    strides = numbers[MAX_DIMENSIONS : MAX_DIMENSIONS + num_dimensions]
    *_, offset, num_bytes = numbers
    field = Field(name, _DTYPES[code], shape, strides, offset, num_bytes)
    _check_extent(field)
    return field


def _check_extent(field: Field) -> None:
    """Check that exactly the named bytes are viewed, and that torch can count them."""
    name, dtype, shape, strides, offset, num_bytes = field
    _expect(min((*shape, *strides), default=0) >= 0, f"shape of {name!r}", (shape, strides), ">= 0")
    _expect(
        math.prod(max(size, 1) for size in shape) * dtype.itemsize <= _LARGEST,
        f"shape of {name!r}",
        shape,
        "something smaller",
    )
    size = math.prod(shape)
    _expect(_are_dense(shape, strides), f"strides of {name!r}", strides, f"dense ones for {shape}")
    _expect(
        num_bytes == size * dtype.itemsize, f"size of {name!r}", num_bytes, size * dtype.itemsize
    )
    _expect(
        offset >= 0 and offset % ALIGNMENT == 0,
        f"offset of {name!r}",
        offset,
        f"a multiple of {ALIGNMENT}",
    )


def _are_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether every element has a place of its own and none is left over."""
    size = 1
    for stride, n in sorted(zip(strides, shape, strict=True)):
        if n > 1 and stride != size:
            return 0 in shape
        size *= n
    return True


@lru_cache(maxsize=256)
def _unpack_name(packed: bytes) -> str:
    name = packed.rstrip(b"\0")
    _expect(name.isascii() and b"\0" not in name, "name", name, "ASCII")
    return name.decode()


def _expect(holds: bool, what: str, found: object, expected: object) -> None:
    if not holds:
        raise ProtocolError(f"bad header: {what} is {found!r}, expected {expected}.")


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
