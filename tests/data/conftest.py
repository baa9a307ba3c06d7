from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads what another run has cached, or leaves anything behind."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PPLL_CACHE", str(folder))
    return folder


def random_images(number: int, *, size: int = 32, seed: int = 0) -> Pixels:
    """(N, 3, size, size)"""
    shape = (number, 3, size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Pixels, mode: str = "RGB") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def png(depth: int, kind: Literal["grey", "RGB", "RGBA"], side: int = 8) -> bytes:
    """A PNG of that many bits a channel, all bytes alike, which Pillow itself cannot write."""
    colour, channels = {"grey": (0, 1), "RGB": (2, 3), "RGBA": (6, 4)}[kind]
    row = b"\0" + b"\x12" * (side * channels * depth // 8)
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0),
        b"IDAT": zlib.compress(row * side),
        b"IEND": b"",
    }
    chunks = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[Any],
    *,
    name: str = "img",
    **columns: Any,
) -> Path:
    """A file like those of ``uoft-cs/cifar10``; ``columns`` take the place of these or add some.

    ``name`` is that of the column of images.
    """
    import pyarrow as pa
    import pyarrow.parquet

    image = pa.array(
        [{"bytes": content, "path": None} for content in images],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = {name: image, "label": pa.array(labels, pa.int64()), **columns}
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.table({k: v for k, v in table.items() if v is not None}), path)
    return path
