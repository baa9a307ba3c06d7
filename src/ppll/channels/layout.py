"""Where the tensors of a message lie: described by the sender, checked before it is believed.

Successive messages have the same fields nearly always, so both directions remember the layouts they
have seen.
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
from ppll.message import DEVICE_ALIGNMENT, is_dense

__all__ = [
    "FIELD_BYTES",
    "MAX_DIMENSIONS",
    "MAX_FIELDS",
    "NAME_BYTES",
    "Field",
    "Layout",
    "expect",
    "layout_of",
    "pack_name",
    "unpack_layout",
    "unpack_name",
]

MAX_FIELDS: Final = 16
MAX_DIMENSIONS: Final = 8
NAME_BYTES: Final = 16

_FIELD: Final = struct.Struct(f"<{NAME_BYTES}sBB6x{MAX_DIMENSIONS}q{MAX_DIMENSIONS}qqq")
FIELD_BYTES: Final = _FIELD.size

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
_LARGEST: Final = 2**63 - 1  # of what torch counts elements and bytes in

_Form: TypeAlias = tuple[str, torch.dtype, tuple[int, ...], tuple[int, ...]]


class Field(NamedTuple):
    """A tensor of a message: what it is and where it lies.

    Attributes:
        name: Name of the field.
        dtype: Type of its elements.
        shape: Its shape.
        strides: Its strides, in elements; dense.
        offset: Its start in bytes from the start of the slot, a multiple of ``DEVICE_ALIGNMENT``.
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
        extent_bytes: What they take together, a multiple of ``DEVICE_ALIGNMENT``.
        packed: The fields as they stand in the header.
    """

    fields: tuple[Field, ...]
    extent_bytes: int
    packed: bytes


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
        pack_name(field.name),
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
def pack_name(name: str) -> bytes:
    """A name as it stands in a header.

    Raises:
        ChannelError: It is not short ASCII.
    """
    if not name.isascii() or "\0" in name or len(name) > NAME_BYTES:
        raise ChannelError(f"{name!r} does not travel; use at most {NAME_BYTES} ASCII characters.")
    return name.encode()


@lru_cache(maxsize=256)
def unpack_layout(packed: bytes) -> Layout:
    """Read the fields of a header.

    Raises:
        ProtocolError: They are not valid.
    """
    fields = tuple(_unpack_field(*values) for values in _FIELD.iter_unpack(packed))
    names = [field.name for field in fields]
    expect(len(set(names)) == len(names), "field names", names, "all different")
    extent = max((field.offset + field.num_bytes for field in fields), default=0)
    return Layout(fields, _aligned(extent), packed)


def _unpack_field(packed_name: bytes, code: int, num_dimensions: int, *numbers: int) -> Field:
    name = unpack_name(packed_name)
    expect(code in _DTYPES, f"dtype code of {name!r}", code, f"one of {list(_DTYPES)}")
    expect(
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
    expect(min((*shape, *strides), default=0) >= 0, f"shape of {name!r}", (shape, strides), ">= 0")
    expect(
        math.prod(max(size, 1) for size in shape) * dtype.itemsize <= _LARGEST,
        f"shape of {name!r}",
        shape,
        "something smaller",
    )
    size = math.prod(shape)
    expect(_are_dense(shape, strides), f"strides of {name!r}", strides, f"dense ones for {shape}")
    expect(
        num_bytes == size * dtype.itemsize, f"size of {name!r}", num_bytes, size * dtype.itemsize
    )
    expect(
        offset >= 0 and offset % DEVICE_ALIGNMENT == 0,
        f"offset of {name!r}",
        offset,
        f"a multiple of {DEVICE_ALIGNMENT}",
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
def unpack_name(packed: bytes) -> str:
    """Read a name of a header.

    Raises:
        ProtocolError: It is not ASCII.
    """
    name = packed.rstrip(b"\0")
    expect(name.isascii() and b"\0" not in name, "name", name, "ASCII")
    return name.decode()


def expect(holds: bool, what: str, found: object, expected: object) -> None:
    """Say what is wrong with a header.

    Raises:
        ProtocolError: It does not hold.
    """
    if not holds:
        raise ProtocolError(f"bad header: {what} is {found!r}, expected {expected}.")


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // DEVICE_ALIGNMENT) * DEVICE_ALIGNMENT
