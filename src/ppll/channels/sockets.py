"""Unix sockets between processes of one user: found by path, proved by a secret.

One side listens on a path in a private folder, the other connects and presents the secret of the
run. Both ask the kernel who the other is. The path is gone as soon as the two are connected.

    receiver                        sender
    listen(path)
                                    connect(path, secret, timeout_s)    does not wait for accept
    accept(listener, secret, timeout_s)

Nothing here waits without a time-out.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import hmac
import os
import select
import selectors
import socket
import stat
import struct
import termios
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ppll.errors import ChannelClosed, ChannelError, ChannelTimeout

__all__ = [
    "FrameReader",
    "accept",
    "close_all",
    "connect",
    "listen",
    "wait_readable",
]

_BACKLOG: Final = 16
_RETRY_S: Final = 0.01
_LONGEST_PATH: Final = 103  # bytes; what macOS allows, Linux has four more
_BUFFER_BYTES: Final = 256 * 1024
_INT: Final = struct.Struct("i")
_CREDENTIALS: Final = struct.Struct("3i")  # of the other end: process, user, group
_FD_SPACE: Final = socket.CMSG_SPACE(_INT.size)
_RECEIVE_FLAGS: Final = socket.MSG_DONTWAIT | getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def listen(path: Path) -> socket.socket:
    """Make a socket that the other side can ``connect`` to.

    Args:
        path: Where to listen: a new name in a folder that only this user may enter.

    Raises:
        ChannelError: The folder is not private, or the path is taken or too long.
    """
    _check_private(path.parent)
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise ChannelError(
            f"the socket path {path} is too long ({len(os.fsencode(path))} bytes, at most "
            f"{_LONGEST_PATH}); choose a shorter temporary folder (TMPDIR)."
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ChannelError(f"cannot listen on {path}: {error.strerror}.") from error
    return listener


def _check_private(folder: Path) -> None:
    try:
        status = folder.stat()
    except OSError as error:
        raise ChannelError(f"no folder for a socket: {folder}: {error.strerror}.") from error
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid() or mode & 0o077:
        raise ChannelError(
            f"{folder} is not private (owner {status.st_uid}, mode {mode:04o}); sockets need a "
            f"folder of user {os.geteuid()} with mode 0700."
        )


def connect(path: Path, secret: bytes, timeout_s: float) -> socket.socket:
    """Connect to a listener, present the secret, and return before it accepts.

    A refusal shows as ``ChannelClosed`` at the first read. Because nobody waits for ``accept``, any
    graph of processes is safe when each listens, then connects, then accepts.

    Args:
        path: Where the other side listens, or will.
        secret: Bytes that both sides know.
        timeout_s: Seconds to wait for the listener to exist.

    Raises:
        ChannelTimeout: Nobody listened in time.
        ChannelError: Another user listens there, or the path cannot be used.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return _connect_once(path, secret)
        except (FileNotFoundError, ConnectionError, BlockingIOError) as error:
            # Not there yet, bound but not listening yet, or more callers than it has room for.
            if time.monotonic() + _RETRY_S > deadline:
                raise ChannelTimeout(
                    f"nobody listened on {path} within {timeout_s:g} s."
                ) from error
        except OSError as error:
            raise ChannelError(f"cannot connect to {path}: {error}.") from error
        time.sleep(_RETRY_S)


def _connect_once(path: Path, secret: bytes) -> socket.socket:
    with contextlib.ExitStack() as undo:
        peer = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        peer.setblocking(False)  # where the listener has no room, a connect would wait for it
        peer.connect(os.fspath(path))
        _prepare(peer)
        peer.sendall(secret)
        undo.pop_all()
    return peer


def accept(listener: socket.socket, secret: bytes, timeout_s: float) -> socket.socket:
    """Wait for the one who presents the secret; close ``listener`` and remove its path.

    Everyone else is refused. Callers are heard side by side, so one that says nothing delays none.

    Args:
        listener: From ``listen``. After a time-out it still listens.
        secret: Bytes that both sides know.
        timeout_s: Seconds to wait.

    Raises:
        ChannelTimeout: Nobody with the secret came in time.
    """
    peer = _first_with_secret(listener, secret, time.monotonic() + timeout_s)
    path = Path(listener.getsockname())
    if peer is None:
        raise ChannelTimeout(f"nobody with the run's secret came to {path} within {timeout_s:g} s.")
    listener.close()
    path.unlink(missing_ok=True)
    return peer


def _first_with_secret(
    listener: socket.socket, secret: bytes, deadline: float
) -> socket.socket | None:
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as callers:
        selector.register(listener, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                caller: FrameReader | None = key.data
                if caller is None:
                    caller = FrameReader(listener.accept()[0], len(secret))
                    callers.callback(caller.close)
                    selector.register(caller.socket, selectors.EVENT_READ, caller)
                elif (proved := _proves(caller, secret)) is not None:
                    selector.unregister(caller.socket)
                    if proved:
                        return socket.socket(fileno=caller.socket.detach())
                    caller.close()
    return None


def _proves(caller: FrameReader, secret: bytes) -> bool | None:
    """Whether the caller is this user and knows the secret; ``None`` while it has not said all."""
    try:
        _prepare(caller.socket)
        if not caller.poll():
            return None
    except ChannelError:
        return False
    return hmac.compare_digest(caller.take()[0], secret)


def _prepare(peer: socket.socket) -> None:
    """Check who the other end is, and make room for as many messages as a channel may hold.

    Raises:
        ChannelError: It belongs to another user.
    """
    if hasattr(socket, "SO_PEERCRED"):
        packed = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, user, _ = _CREDENTIALS.unpack(packed)
        if user != os.geteuid():
            raise ChannelError(f"the other end belongs to user {user}, not {os.geteuid()}.")
    peer.setblocking(True)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        peer.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)


class FrameReader:
    """Collects frames of a fixed size from a socket, and the descriptors that came with them.

    Never blocks. It owns the socket.

    Args:
        peer: A connected socket.
        frame_bytes: Size of every frame.
    """

    def __init__(self, peer: socket.socket, frame_bytes: int) -> None:
        self.socket = peer
        self._frame = memoryview(bytearray(frame_bytes))
        self._filled = 0
        self._fds: list[int] = []

    @property
    def available_bytes(self) -> int:
        """Bytes that have come and were not taken."""
        unread = fcntl.ioctl(self.socket, termios.FIONREAD, bytes(_INT.size))
        return self._filled + int(_INT.unpack(unread)[0])

    def poll(self) -> bool:
        """Read what there is; return whether a frame is complete.

        Raises:
            ChannelClosed: The other end is gone, and no complete frame is left.
        """
        while self._filled < len(self._frame):
            try:
                count, ancillary, *_ = self.socket.recvmsg_into(
                    [self._frame[self._filled :]], _FD_SPACE, _RECEIVE_FLAGS
                )
            except BlockingIOError:
                return False
            except ConnectionError:
                count, ancillary = 0, []
            for _, _, data in ancillary:
                self._fds += _descriptors(data)
            if not count:
                raise ChannelClosed("the other end is gone.")
            self._filled += count
        return True

    def take(self) -> tuple[memoryview, list[int]]:
        """The complete frame, which the next ``poll`` overwrites, and the caller's descriptors."""
        fds, self._fds = self._fds, []
        self._filled = 0
        return self._frame, fds

    def close(self) -> None:
        """Close the socket and the descriptors that nobody took."""
        self.socket.close()
        close_all(self._fds)
        self._fds = []


def wait_readable(peer: socket.socket, timeout_s: float | None) -> None:
    """Sleep until there is something to read, the other end is gone, or the time is over."""
    poll = select.poll()
    poll.register(peer, select.POLLIN)
    poll.poll(None if timeout_s is None else max(timeout_s, 0) * 1000)


def close_all(fds: Iterable[int]) -> None:
    """Close file descriptors."""
    for fd in fds:
        os.close(fd)


def _descriptors(data: bytes) -> list[int]:
    """The descriptors in an ancillary message, which may have been cut short."""
    fds = array.array("i")
    fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()
