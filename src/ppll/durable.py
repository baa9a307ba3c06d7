"""Files that are there whole or not at all, also after a power cut."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ppll.errors import UsageError

__all__ = ["make_folder", "open_plain", "open_regular", "write_asked", "write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place, see it on the disk, then move it to its place.

    Raises:
        OSError: It cannot be written; what was there before is still there, and nothing else.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def write_asked(path: Path, content: bytes) -> None:
    """Write a file whole that the user has named.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}.") from None


def open_plain(path: Path) -> BinaryIO:
    """Open a file that lies itself where its name says: no link, which may lead anywhere, no pipe.

    Raises:
        OSError: It cannot be read, or is something else.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link", str(path))
    return open_regular(path, os.O_NOFOLLOW)  # Who puts a link there meanwhile gains nothing.


def open_regular(path: Path, flags: int = 0) -> BinaryIO:
    """Open a file, or where a link leads to: no pipe, which may never end, and no device.

    Raises:
        OSError: It cannot be read, or is something else.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | flags)
    file = open(descriptor, "rb")  # noqa: SIM115 (the caller closes it)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return file


def make_folder(path: Path) -> None:
    """Make a folder whose name is on the disk when this returns; it may be there already.

    Raises:
        OSError: It cannot be made.
    """
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
