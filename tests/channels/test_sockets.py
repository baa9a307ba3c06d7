from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ppll.channels import sockets
from ppll.channels.sockets import FrameReader
from ppll.errors import ChannelClosed, ChannelError, ChannelTimeout

SECRET = bytes(range(32))
WAIT_S = 20.0


def receive_exactly(peer: socket.socket, num_bytes: int, timeout_s: float) -> bytes:
    """So many bytes, or ``ChannelClosed`` where the other end hangs up before."""
    content = b""
    while len(content) < num_bytes:
        sockets.wait_readable(peer, timeout_s)
        try:
            part = peer.recv(num_bytes - len(content))
        except ConnectionError:
            part = b""
        if not part:
            raise ChannelClosed("the other end is gone")
        content += part
    return content


@pytest.fixture
def listener(paths: Iterator[Path]) -> Iterator[socket.socket]:
    path = next(paths)
    with sockets.listen(path) as listener:
        yield listener
    path.unlink(missing_ok=True)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


def path_of(listener: socket.socket) -> Path:
    return Path(listener.getsockname())


def taken(reader: FrameReader) -> tuple[bytes, list[int]]:
    frame, fds = reader.take()
    return bytes(frame), fds


# Finding each other


def test_connect_then_accept_in_one_thread(listener: socket.socket) -> None:
    path = path_of(listener)
    with (
        sockets.connect(path, SECRET, WAIT_S) as caller,
        sockets.accept(listener, SECRET, WAIT_S) as peer,
    ):
        assert not path.exists()
        caller.sendall(b"to")
        peer.sendall(b"fro")
        assert receive_exactly(peer, 2, WAIT_S) == b"to"
        assert receive_exactly(caller, 3, WAIT_S) == b"fro"


def test_connect_waits_until_somebody_listens(paths: Iterator[Path]) -> None:
    path = next(paths)
    with ThreadPoolExecutor() as pool:
        calling = pool.submit(sockets.connect, path, SECRET, WAIT_S)
        with sockets.listen(path) as listener, sockets.accept(listener, SECRET, WAIT_S) as peer:
            with calling.result(WAIT_S) as caller:
                caller.sendall(b"!")
            assert receive_exactly(peer, 1, WAIT_S) == b"!"


def test_connect_gives_up(paths: Iterator[Path]) -> None:
    with pytest.raises(ChannelTimeout, match=r"nobody listened on .* within 0.05 s"):
        sockets.connect(next(paths), SECRET, 0.05)


def test_connect_gives_up_on_a_path_that_nobody_listens_on_any_more(
    listener: socket.socket,
) -> None:
    path = path_of(listener)
    listener.close()
    with pytest.raises(ChannelTimeout):
        sockets.connect(path, SECRET, 0.05)


def test_accept_gives_up_and_may_be_called_again(listener: socket.socket) -> None:
    with pytest.raises(ChannelTimeout, match=r"nobody with the run's secret came to .* 0.05 s"):
        sockets.accept(listener, SECRET, 0.05)
    with (
        sockets.connect(path_of(listener), SECRET, WAIT_S),
        sockets.accept(listener, SECRET, WAIT_S),
    ):
        pass


@pytest.mark.parametrize(
    "words", [bytes(32), b"", SECRET[:-1], os.urandom(5000)], ids=["wrong", "none", "short", "long"]
)
def test_who_does_not_know_the_secret_is_refused(listener: socket.socket, words: bytes) -> None:
    path = path_of(listener)
    with contextlib.ExitStack() as stack:
        stranger = stack.enter_context(sockets.connect(path, words, WAIT_S))
        caller = stack.enter_context(sockets.connect(path, SECRET, WAIT_S))
        peer = stack.enter_context(sockets.accept(listener, SECRET, WAIT_S))
        caller.sendall(b"!")
        assert receive_exactly(peer, 1, WAIT_S) == b"!"
        with pytest.raises(ChannelClosed):
            receive_exactly(stranger, 1, WAIT_S)


def test_who_says_nothing_is_refused_in_the_end(listener: socket.socket) -> None:
    with sockets.connect(path_of(listener), b"", WAIT_S) as silent:
        with pytest.raises(ChannelTimeout):
            sockets.accept(listener, SECRET, 0.05)
        with pytest.raises(ChannelClosed):
            receive_exactly(silent, 1, WAIT_S)


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="the kernel does not say who it is")
def test_other_users_are_refused(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    path = path_of(listener)
    with sockets.connect(path, SECRET, WAIT_S):
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(ChannelTimeout):
            sockets.accept(listener, SECRET, 0.05)
        with pytest.raises(ChannelError, match="belongs to user"):
            sockets.connect(path, SECRET, WAIT_S)


# Where to listen


def test_only_a_private_folder_will_do(folder: Path) -> None:
    folder.chmod(0o755)
    with pytest.raises(ChannelError, match=r"not private .*mode 0755.* with mode 0700"):
        sockets.listen(folder / "socket")
    with pytest.raises(ChannelError, match="no folder for a socket"):
        sockets.listen(folder / "missing" / "socket")


def test_a_path_that_is_taken_is_refused(listener: socket.socket) -> None:
    with pytest.raises(ChannelError, match=r"cannot listen on .*in use"):
        sockets.listen(path_of(listener))


def test_a_long_path_is_refused_with_a_remedy(folder: Path) -> None:
    with pytest.raises(ChannelError, match=r"too long .* shorter temporary folder"):
        sockets.listen(folder / ("x" * 120))


# Frames


def test_frames_are_put_together_from_pieces(pair: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = pair
    reader = FrameReader(receiver, 4)
    assert not reader.poll()
    for byte in b"abcdef":
        sender.send(bytes([byte]))
        complete = reader.poll()
    assert complete
    assert reader.available_bytes == 6
    assert taken(reader) == (b"abcd", [])
    assert not reader.poll()
    assert reader.available_bytes == 2


def test_complete_frames_come_before_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = pair
    sender.sendall(b"abcdef")
    sender.close()
    reader = FrameReader(receiver, 4)
    assert reader.poll()
    assert taken(reader) == (b"abcd", [])
    with pytest.raises(ChannelClosed):
        reader.poll()


def test_descriptors_come_with_their_frame(pair: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = pair
    inside, outside = os.pipe()
    sender.sendall(b"abcd")
    socket.send_fds(sender, [b"efgh"], [outside])
    os.close(outside)
    reader = FrameReader(receiver, 4)
    assert reader.poll()
    assert taken(reader) == (b"abcd", [])
    assert reader.poll()
    frame, (fd,) = taken(reader)
    assert frame == b"efgh"
    assert not os.get_inheritable(fd)
    os.write(fd, b"!")
    assert os.read(inside, 1) == b"!"
    sockets.close_all([fd, inside])


def test_descriptors_that_nobody_took_are_closed(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    sender, receiver = pair
    inside, outside = os.pipe()
    rights = array.array("i", [outside])
    sender.sendmsg([b"ab"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    os.close(outside)
    reader = FrameReader(receiver, 4)
    assert not reader.poll()
    reader.close()
    assert os.read(inside, 1) == b""  # nobody has the other end any more
    os.close(inside)
