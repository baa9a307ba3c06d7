"""Headers and greetings of near-valid channels: a message that lies in its slot, or an error.

``tests/channels`` has the noise, the flipped bits and every complaint by name.
"""

from __future__ import annotations

import os
import socket
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from ppll.channels import greeting as offers
from ppll.channels import header, layout, sockets
from ppll.channels.base import SlotLayout
from ppll.channels.header import (
    HEADER_BYTES,
    MAGIC,
    VERSION,
    pack_header,
    unpack_header,
)
from ppll.channels.layout import layout_of
from ppll.channels.shared import MAX_CAPACITY, SharedReceiveEnd, SharedSendEnd
from ppll.errors import ChannelClosed, ChannelError, ProtocolError
from ppll.message import Kind, Message, is_dense

from . import fuzz, mutated_bytes

SECRET = bytes(range(32))
WAIT_S = 20.0
LAYOUT = SlotLayout({"features": 1024, "targets": 64})
TENSORS = {
    "features": torch.rand(2, 3, 4),
    "targets": torch.arange(4),
    "image": torch.ones(2, 2, 2).byte(),
}
NUMBERS = [0, 1, 2, 3, 4, 5, 6, 12, 24, 63, 64, 96, 128, 1024, -1, -64, 2**40, 2**62, 2**63 - 1]
NAMES = [b"features", b"targets", b"", b"\0x", b"x" * 16, b"\xff", b"../../x"]


def packed(sequence: int = 0, tensors: dict[str, torch.Tensor] = TENSORS) -> bytearray:
    buffer = bytearray(HEADER_BYTES)
    message = Message(kind=Kind.TRAIN, sequence=sequence, step=sequence, split="test")
    pack_header(buffer, message, layout_of(tensors))
    return buffer


FIRST_FIELD = header._PREFIX.size
FIELD_BYTES = layout.FIELD_BYTES
FIRST_STRIDE = 3 + layout.MAX_DIMENSIONS  # behind name, dtype, number of dimensions, and shape


def altered(content: bytearray, form: struct.Struct, at: int, number: int, value: Any) -> None:
    """Put a value in the place of one of those that stand there; the kind of both is the same."""
    values: list[Any] = list(form.unpack_from(content, at))
    values[number] = value
    form.pack_into(content, at, *values)


@st.composite
def mutated_header(draw: st.DrawFn, sequence: int = 0) -> bytes:
    """A header in which up to four numbers or names are others that may well stand there."""
    content = packed(sequence)
    parts = [(header._PREFIX, 0)]
    parts += [(layout._FIELD, FIRST_FIELD + i * FIELD_BYTES) for i in range(len(TENSORS))]
    for form, at in draw(st.lists(st.sampled_from(parts), min_size=1, max_size=4)):
        number = draw(st.integers(0, len(form.unpack_from(content, at)) - 1))
        value: Any = draw(st.sampled_from(NUMBERS))
        if isinstance(form.unpack_from(content, at)[number], bytes):
            value = draw(st.sampled_from(NAMES))
        try:
            altered(content, form, at, number, value)
        except struct.error:  # The number is too large for a byte.
            altered(content, form, at, number, value % 256)
    return bytes(content)


@fuzz(250)
@given(mutated_header())
def test_a_layout_that_is_believed_is_dense_and_packs_to_itself(content: bytes) -> None:
    try:
        found = unpack_header(memoryview(content))
    except ProtocolError:
        return
    for field in found.layout.fields:
        assert 0 <= field.offset <= found.layout.extent_bytes - field.num_bytes
        meta = torch.empty_strided(field.shape, field.strides, dtype=field.dtype, device="meta")
        assert meta.nbytes == field.num_bytes
        assert is_dense(meta) or field.num_bytes == 0
    num_bytes = len(found.layout.packed)
    assert found.layout.packed == content[FIRST_FIELD : FIRST_FIELD + num_bytes]


@pytest.mark.parametrize("strides", [(5, 0), (0, 1), (2, 2), (1, 3), (3, 2)])
def test_strides_by_which_elements_overlap_are_refused(strides: tuple[int, int]) -> None:
    content = packed(tensors={"x": torch.rand(2, 3)})
    for number, stride in enumerate(strides, FIRST_STRIDE):
        altered(content, layout._FIELD, FIRST_FIELD, number, stride)
    with pytest.raises(ProtocolError, match=r"strides of 'x' .* dense ones for \(2, 3\)"):
        unpack_header(memoryview(content))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ppll-") as name:
        yield Path(name)


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "socket"


@fuzz(75)
@given(st.lists(mutated_header() | st.integers(0, 2).map(lambda i: bytes(packed(i))), max_size=4))
@example([bytes(packed(0)), bytes(packed(1)), bytes(packed(2))])
def test_a_stream_of_headers_gives_messages_until_an_error(
    path: Path, headers: list[bytes]
) -> None:
    hear(path, b"".join(headers))


@fuzz(50)
@given(mutated_bytes(b"".join(bytes(packed(i)) for i in range(3))))
def test_a_stream_out_of_step_ends(path: Path, stream: bytes) -> None:
    hear(path, stream)


def hear(path: Path, stream: bytes) -> None:
    """Receive what a stranger with the secret says; it hangs up afterwards."""
    receiver = SharedReceiveEnd.listen(path, LAYOUT, 2, SECRET)
    with sockets.connect(path, SECRET, WAIT_S) as stranger:
        receiver.accept(WAIT_S)
        _, (memory,), _, _ = socket.recv_fds(stranger, 100, 1)
        stranger.sendall(stream)
    try:
        for _ in range(len(stream) // HEADER_BYTES):
            message = receiver.recv(WAIT_S)
            content = [t.flatten().tolist() for t in message.tensors.values()]
            assert sum(map(len, content)) <= LAYOUT.slot_bytes
            receiver.release(message)
        with pytest.raises(ChannelClosed):
            receiver.recv(WAIT_S)
    except ChannelError:
        pass
    finally:
        receiver.close()
        os.close(memory)
    assert not path.exists()


def greeting(
    capacity: int,
    slot_bytes: int,
    magic: bytes = MAGIC,
    version: int = VERSION,
    export: bytes = b"",
) -> bytes:
    return offers._GREETING.pack(magic, version, len(export), capacity, slot_bytes) + export


greetings = st.builds(
    greeting,
    st.sampled_from([2, 1, *NUMBERS]),
    st.sampled_from([LAYOUT.slot_bytes, 64, 100, *NUMBERS]),
    st.sampled_from([MAGIC, MAGIC, b"HTTP"]),
    st.sampled_from([VERSION, VERSION, VERSION + 1]),
    st.sampled_from([b"", bytes(384), bytes(100)]),  # the second has the size for two slots
)
GOOD_GREETING = greeting(2, LAYOUT.slot_bytes)


@fuzz(100)
@given(
    greetings | mutated_bytes(GOOD_GREETING), st.sampled_from([0, 1, 4096, 10**5]), st.booleans()
)
@example(greeting(-2, -64), 4096, True)
@example(greeting(2**40, 0), 4096, True)
@example(greeting(2, 100), 4096, True)
@example(GOOD_GREETING, 10**5, True)
def test_a_sender_believes_no_greeting_that_cannot_be(
    path: Path, words: bytes, num_bytes: int, with_memory: bool
) -> None:
    message = Message(kind=Kind.TRAIN, sequence=0, step=0, tensors=TENSORS)
    with sockets.listen(path) as listener:
        sender = SharedSendEnd.connect(path, SECRET, WAIT_S)
        with sockets.accept(listener, SECRET, WAIT_S) as receiver:
            memory = os.memfd_create("test")
            os.ftruncate(memory, num_bytes)
            socket.send_fds(receiver, [words or b"x"], [memory] if with_memory else [])
            os.close(memory)
            receiver.shutdown(socket.SHUT_WR)
            try:
                sender.send(message, WAIT_S)
            except ChannelError:
                pass
            else:
                assert 1 <= sender.capacity <= MAX_CAPACITY
            finally:
                sender.close()
