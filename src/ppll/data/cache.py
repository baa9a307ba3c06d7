"""Decoded arrays kept on disk, so that images are decoded once and not at every start.

The cache only ever saves time: what is damaged is made again, and where nothing can be written
nothing is kept.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import safetensors
import safetensors.numpy

__all__ = ["Arrays", "cache_folder", "cached"]

Arrays = Mapping[str, npt.NDArray[Any]]

_FORMAT: Final = 2
"""Raised whenever the same sources are to give other arrays."""


def cache_folder() -> Path:
    """Where decoded data is kept: PPLL_CACHE, else ``ppll`` in the user's cache folder.

    Raises:
        RuntimeError: The user has no home folder.
    """
    if own := os.environ.get("PPLL_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "ppll"


def cached(name: str, sources: Iterable[Path | str], decode: Callable[[], Arrays]) -> Arrays:
    """What ``decode`` gives, from the cache where it was asked before.

    Args:
        name: What the arrays are, the beginning of the file's name.
        sources: What they are made from: files, which count by path, size and time of change,
            and words such as a version.
        decode: Makes them.
    """
    try:
        path = cache_folder() / f"{name}-{_fingerprint(sources)}.safetensors"
    except (OSError, RuntimeError):
        return decode()
    arrays = _read(path)
    if arrays is None:
        arrays = decode()
        _write(path, arrays)
    return arrays


def _fingerprint(sources: Iterable[Path | str]) -> str:
    digest = hashlib.blake2b(f"format {_FORMAT}".encode(), digest_size=12)
    for source in sources:
        words: tuple[object, ...] = (source,)
        if isinstance(source, Path):
            status = source.stat()
            words = (source.resolve(), status.st_size, status.st_mtime_ns)
        digest.update(repr(tuple(map(str, words))).encode())
    return digest.hexdigest()


def _checksum(arrays: Arrays) -> str:
    total = 0
    for name in sorted(arrays):
        array = arrays[name]
        total = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), total)
        total = zlib.crc32(array.data, total)
    return f"{total:08x}"


def _read(path: Path) -> Arrays | None:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = (file.metadata() or {}).get("crc32")
            return arrays if _checksum(arrays) == expected else None
    except Exception:  # what numpy says to types and shapes that it lacks has no common type
        return None


def _write(path: Path, arrays: Arrays) -> None:
    """Write the file whole or not at all; another process may be doing the same."""
    content = safetensors.numpy.save(dict(arrays), metadata={"crc32": _checksum(arrays)})
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
        temporary.replace(path)
    except OSError:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
