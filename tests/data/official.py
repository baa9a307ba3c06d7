"""Small files in the formats in which data sets are published officially."""

from __future__ import annotations

import hashlib
import io
import itertools
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .conftest import Pixels


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    return (
        b"M" + struct.pack("<H", value) if 0 <= value < 2**16 else b"J" + struct.pack("<i", value)
    )


def pickled_batch(images: Pixels, labels: Sequence[int]) -> bytes:
    """A batch of CIFAR-10 as the release has it: by Python 2, protocol 2."""
    places = itertools.count(1)

    def kept(content: bytes) -> bytes:
        place = next(places)
        return content + (b"q" + bytes([place]) if place < 256 else b"r" + struct.pack("<I", place))

    def text(words: str) -> bytes:
        return kept(b"U" + bytes([len(words)]) + words.encode())

    def row(items: Sequence[bytes]) -> bytes:
        thousands = [items[start : start + 1000] for start in range(0, len(items), 1000)]
        return kept(b"]") + b"".join(b"(" + b"".join(some) + b"e" for some in thousands)

    def array() -> bytes:
        pixels = images.tobytes()
        new = kept(b"cnumpy.core.multiarray\n_reconstruct\n") + kept(b"cnumpy\nndarray\n")
        new += kept(b"K\0\x85") + text("b") + kept(b"\x87") + kept(b"R")
        shape = kept(number(len(images)) + number(3072) + b"\x86")
        kind = kept(b"cnumpy\ndtype\n") + text("u1") + kept(b"K\0K\1\x87") + kept(b"R")
        kind += b"(K\3" + text("|") + b"NNN" + number(-1) * 2 + kept(b"K\0t") + b"b"
        values = kept(b"T" + struct.pack("<I", len(pixels)) + pixels)
        return new + b"(K\1" + shape + kind + b"\x89" + values + kept(b"t") + b"b"

    batch = b"\x80\2" + kept(b"}") + b"("
    batch += text("batch_label") + text("training batch 1 of 5")
    batch += text("labels") + row([number(label) for label in labels])
    batch += text("data") + array()
    batch += text("filenames") + row([text(f"leopard_s_{i:06}.png") for i in range(len(labels))])
    return batch + b"u."


def md5(contents: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}


def write_archive(path: Path, contents: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def matlab(images: Pixels, labels: Sequence[int], *, compressed: bool = True) -> bytes:
    """A file of SVHN's second format; the digit 0 has the label 10."""
    from scipy.io import savemat

    buffer = io.BytesIO()
    digits = np.array([[label or 10] for label in labels], np.uint8).reshape(-1, 1)
    content = {"X": images.transpose(2, 3, 1, 0), "y": digits}
    savemat(buffer, content, do_compression=compressed)
    return buffer.getvalue()


def binary(images: Pixels, labels: Sequence[int]) -> tuple[bytes, bytes]:
    """STL-10's two files: images column by column, and labels from 1 on."""
    return images.transpose(0, 1, 3, 2).tobytes(), bytes(label + 1 for label in labels)
