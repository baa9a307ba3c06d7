from __future__ import annotations

import re
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppll.channels.header import HEADER_BYTES, Header, pack_header, unpack_header
from ppll.channels.layout import layout_of
from ppll.errors import ChannelError, ProtocolError
from ppll.message import DEVICE_ALIGNMENT, Kind, Message


def packed(**tensors: Tensor) -> bytearray:
    """The header of a message with these tensors."""
    buffer = bytearray(HEADER_BYTES)
    message = Message(kind=Kind.TRAIN, sequence=5, step=4, epoch=1, split="test", saved_step=2)
    pack_header(buffer, message, layout_of(tensors))
    return buffer


def unpacked(buffer: bytes | bytearray) -> Header:
    return unpack_header(memoryview(buffer))


VALID = packed(features=torch.rand(4, 3), targets=torch.arange(4))


def test_what_is_packed_is_unpacked() -> None:
    header = unpacked(VALID)
    assert header.message({}) == Message(
        kind=Kind.TRAIN, sequence=5, step=4, epoch=1, split="test", saved_step=2
    )
    assert header.layout == layout_of({"features": torch.rand(4, 3), "targets": torch.arange(4)})
    assert not header.own_memory


def test_tensors_lie_one_after_the_other_on_boundaries() -> None:
    layout = layout_of({"a": torch.rand(80), "b": torch.rand(0), "c": torch.ones(3).byte()})
    assert [(field.offset, field.num_bytes) for field in layout.fields] == [
        (0, 320),
        (2 * DEVICE_ALIGNMENT, 0),
        (2 * DEVICE_ALIGNMENT, 3),
    ]
    assert layout.extent_bytes == 3 * DEVICE_ALIGNMENT


@pytest.mark.parametrize(
    ("offset", "form", "value", "complaint"),
    [
        (0, "4s", b"HTTP", "magic is b'HTTP', expected b'PPLL'"),
        (4, "<H", 1, "version is 1, expected 5"),
        (6, "B", 0, r"kind is 0, expected one of \[1, 2"),
        (7, "B", 17, "number of tensors is 17, expected at most 16"),
        (8, "B", 2, "own-memory flag is 2"),
        (9, "B", 2, "new-slots flag is 2, expected 0, or 1 alone"),
        (8, "<H", 257, "new-slots flag is 1, expected 0, or 1 alone"),
        (56, "4s", b"te\xffst", "name is .* expected ASCII"),
        (10, "<H", 3, "part is 3, expected below 1"),
        (16, "<d", 1.5, "share is 1.5, expected above 0, at most 1"),
        (16, "<d", float("nan"), "share is nan"),
        (72, "16s", b"targets", "field names is .* all different"),
        (72, "2s", b"\0b", "name is .* expected ASCII"),
        (88, "B", 99, "dtype code of 'features' is 99"),
        (89, "B", 9, "number of dimensions of 'features' is 9, expected at most 8"),
        (96, "<q", -4, "shape of 'features'"),
        (96, "<q", 2**62, "shape of 'features' is .* expected something smaller"),
        (96, "<q", 5, "size of 'features' is 48, expected 60"),
        (160, "<q", -3, "shape of 'features'"),
        (160, "<q", 2**62, "strides of 'features'"),
        (224, "<q", 8, "offset of 'features' is 8, expected a multiple of 256"),
        (224, "<q", -64, "offset of 'features' is -64"),
        (232, "<q", 47, "size of 'features' is 47, expected 48"),
    ],
)
def test_complaint_names_what_was_found_and_expected(
    offset: int, form: str, value: int | bytes, complaint: str
) -> None:
    header = bytearray(VALID)
    struct.pack_into(form, header, offset, value)
    with pytest.raises(ProtocolError, match=complaint):
        unpacked(header)


def test_empty_tensor_with_dimensions_that_overflow_is_refused() -> None:
    header = packed(features=torch.rand(0, 3, 3))
    struct.pack_into("<qq", header, 96 + 8, 2**40, 2**40)
    with pytest.raises(ProtocolError, match="something smaller"):
        unpacked(header)


@settings(deadline=None)
@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpacked(noise)


@settings(deadline=None)
@given(st.binary(min_size=HEADER_BYTES - 6, max_size=HEADER_BYTES - 6))
def test_noise_behind_magic_and_version_is_refused_or_read(noise: bytes) -> None:
    try:
        layout = unpacked(bytes(VALID[:6]) + noise).layout
    except ProtocolError:
        return
    assert all(field.offset + field.num_bytes <= layout.extent_bytes for field in layout.fields)


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({str(i): torch.ones(1) for i in range(17)}, "at most 16 tensors, not 17"),
        ({"x": torch.ones([1] * 9)}, "'x' has 9 dimensions, at most 8"),
        ({"x": torch.ones(1, dtype=torch.complex64)}, "'x': torch.complex64 does not travel"),
        ({"a_name_that_is_too_long": torch.ones(1)}, "use at most 16 ASCII characters"),
        ({"größe": torch.ones(1)}, "use at most 16 ASCII characters"),
    ],
    ids=["tensors", "dimensions", "dtype", "long name", "other alphabet"],
)
def test_what_cannot_travel_is_refused_before_it_is_sent(
    tensors: dict[str, Tensor], complaint: str
) -> None:
    with pytest.raises(ChannelError, match=re.escape(complaint)):
        layout_of(tensors)
