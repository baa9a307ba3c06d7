"""Arrays of numbers in a MATLAB file of level 5, which is what MATLAB has written since 1996.

scipy reads more of the format, but a damaged file can make its reader crash the process.

Source: "MAT-File Format", The MathWorks.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ppll.data.progress import counted
from ppll.errors import DataError

__all__ = ["read_arrays"]

_PIECE_BYTES: Final = 2**22
_MOST_BYTES: Final = 2**31
"""MATLAB writes no larger variable into a file of this level."""
_TAG_BYTES: Final = 8
_MATRIX: Final = 14
_COMPRESSED: Final = 15
_TYPES: Final = {
    1: "<i1",
    2: "<u1",
    3: "<i2",
    4: "<u2",
    5: "<i4",
    6: "<u4",
    7: "<f4",
    9: "<f8",
    12: "<i8",
    13: "<u8",
}
"""How the numbers of an array are stored, whatever type they have in MATLAB."""
_CLASSES: Final = range(6, 16)
"""Dense arrays of numbers: double, single, and the integers."""


def read_arrays(
    content: bytes, source: Path, *, most_bytes: int = _MOST_BYTES
) -> dict[str, npt.NDArray[Any]]:
    """Every array of numbers by its name, in the type in which it is stored.

    Args:
        content: The whole file.
        source: Where it comes from, for messages.
        most_bytes: A compressed variable that holds more is refused.

    Raises:
        DataError: It is damaged, another kind of file, or larger than the memory.
    """
    if content[124:128] != b"\0\1IM":
        raise DataError(
            f"{source} is no MATLAB file of level 5 (of versions 5 to 7, little endian): fetch it "
            "again."
        )
    arrays, rest = {}, memoryview(content)[128:]
    try:
        while len(rest) > 0:
            kind, body, rest = _element(rest)
            if kind == _COMPRESSED:
                kind, body, _ = _element(_inflated(body, source, most_bytes))
            if kind == _MATRIX and (named := _array(body)) is not None:
                name, array = named
                arrays[name] = array
    except (struct.error, zlib.error, ValueError) as error:
        raise DataError(f"{source} is not a whole MATLAB file ({error}): fetch it again.") from None
    except MemoryError:
        raise DataError(f"{source} does not fit into memory.") from None
    return arrays


def _inflated(body: memoryview, source: Path, most_bytes: int) -> memoryview:
    """A compressed element; not much of it is inflated if it is larger than it may be."""
    pieces = [body[start : start + _PIECE_BYTES] for start in range(0, len(body), _PIECE_BYTES)]
    inflater = zlib.decompressobj()
    content, size = bytearray(), 0
    for part in counted(str(source), pieces):
        piece: memoryview | bytes = part
        if not content:
            content += inflater.decompress(piece, _TAG_BYTES)
            size = _TAG_BYTES + _announced(content)
            piece = inflater.unconsumed_tail
            if size > most_bytes:
                raise ValueError(f"it announces {size} bytes, more than any variable has")
        content += inflater.decompress(piece, size + 1 - len(content))
        if len(content) > size:
            raise ValueError("its compressed part holds more than it announces")
    if not inflater.eof:
        raise ValueError("its compressed part ends too early")
    return memoryview(content)


def _announced(tag: bytearray) -> int:
    """Bytes that follow an element's tag; a small one lies in the tag itself."""
    kind, size = struct.unpack("<II", tag)
    return 0 if kind >> 16 else size + -size % 8


def _element(data: memoryview) -> tuple[int, memoryview, memoryview]:
    """The first element's kind and content, and what follows it."""
    kind, size = struct.unpack_from("<II", data)
    if kind >> 16:  # so small that it lies where others have their size
        return kind & 0xFFFF, data[4 : 4 + (kind >> 16)], data[8:]
    if size > len(data) - 8:
        raise ValueError(f"{size} bytes are announced, {len(data) - 8} are there")
    padding = 0 if kind == _COMPRESSED else -size % 8
    return kind, data[8 : 8 + size], data[8 + size + padding :]


def _array(body: memoryview) -> tuple[str, npt.NDArray[Any]] | None:
    """Name and values (column by column) of a matrix; none if it holds anything but numbers."""
    _, flags, rest = _element(body)
    _, sides, rest = _element(rest)
    _, name, rest = _element(rest)
    if struct.unpack_from("<I", flags)[0] & 0xFF not in _CLASSES:
        return None
    kind, values, _ = _element(rest)
    if kind not in _TYPES:
        raise ValueError(f"no numbers are stored as type {kind}")
    shape = np.frombuffer(sides, "<i4")
    array = np.frombuffer(values, _TYPES[kind]).reshape(shape, order="F")
    return bytes(name).decode("latin-1"), array
