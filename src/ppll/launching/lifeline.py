"""The line between the launcher and each of its ranks.

Over it a rank gets its status page, reports its failure or its result, and hears that the run
should end. It also ties lives together: when the launcher is gone the rank's end of the line
closes and the rank leaves; when a rank is gone without a word the launcher sees it at once.

The launcher speaks first: it answers a rank's ``hello`` with the descriptor of its page. Everything
else is one JSON object a line.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import pydantic
import pydantic_core

from ppll.channels import sockets
from ppll.errors import ChannelError, ProtocolError
from ppll.interrupts import Wish
from ppll.job import RankResult
from ppll.launching.failure import Failure
from ppll.status import StatusPage

__all__ = ["LauncherEnd", "RankEnd"]

_CONNECT_TIMEOUT_S: Final = 5.0
"""It listens before it starts a rank: nobody is there only where it is gone."""
_PARENT_TURN_S: Final = 0.5
_MAX_BYTES: Final = 1 << 26


@dataclass(frozen=True)
class _Hello:
    """What a rank says first; its process may be killed, so it is none of the system's."""

    hello: Annotated[int, pydantic.Field(ge=0)]
    pid: Annotated[int, pydantic.Field(gt=1, lt=2**31)]


_HELLO = pydantic.TypeAdapter(_Hello)
_FAILURE = pydantic.TypeAdapter(Failure)
_RESULT = pydantic.TypeAdapter(RankResult)


class RankEnd:
    """The rank's end of the line.

    Args:
        path: The launcher's socket.
        secret: The run's secret.
        rank: Who this is.
        leftovers: Folders to remove when the launcher is gone.
    """

    def __init__(
        self, path: Path, secret: bytes, rank: int, leftovers: Sequence[Path] = ()
    ) -> None:
        self.wish = 0
        """What the run is asked to do, as in ``Wish``."""
        self.has_told = False
        """Whether it has said that, or why, the rank cannot go on."""
        self._leftovers = leftovers
        self._connected = threading.Event()
        threading.Thread(target=self._watch_parent, name="parent watch", daemon=True).start()
        try:
            self._socket = sockets.connect(path, secret, _CONNECT_TIMEOUT_S)
            self._socket.setblocking(True)
            self._send(hello=rank, pid=os.getpid())
            _, descriptors, _, _ = socket.recv_fds(self._socket, 1, 1)
        except (ChannelError, OSError) as error:
            sys.stderr.write(f"cannot reach the launcher: {error}\n")
            descriptors = []
        if not descriptors:
            self._leave()  # The launcher was gone before it answered.
        self._connected.set()
        self.page = StatusPage(descriptors[0])
        threading.Thread(target=self._listen, name="lifeline", daemon=True).start()

    def report_failure(self, failure: Failure) -> None:
        """Say what went wrong here."""
        self.has_told = True
        self._send(failure=asdict(failure))

    def report_aftermath(self, failure: Failure) -> None:
        """Say that a neighbour is gone: the cause lies elsewhere, if anybody knows one."""
        self.has_told = True
        self._send(aftermath=asdict(failure))

    def report_result(self, result: RankResult) -> None:
        """Say what this rank came to."""
        self._send(result=asdict(result))

    def _send(self, **message: Any) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self) -> None:
        """Hear the wish to end; leave when the launcher is gone."""
        with suppress(OSError):
            while asked := self._socket.recv(1):
                self.wish = asked[0]
        self._leave()

    def _watch_parent(self) -> None:
        """Leave when the fork server, which ends with the launcher, is gone too early."""
        parent = os.getppid()
        while not self._connected.wait(_PARENT_TURN_S):
            if os.getppid() != parent:
                self._leave()

    def _leave(self) -> NoReturn:
        for folder in self._leftovers:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)


class LauncherEnd:
    """The launcher's end of one rank's line.

    Args:
        connection: A connection that showed the run's secret.
        expected_rank: Who is to be at its other end.
    """

    def __init__(self, connection: socket.socket, expected_rank: int) -> None:
        self.socket = connection
        self.expected_rank = expected_rank
        self.rank = -1
        self.pid = -1
        self.failure: Failure | None = None
        self.result: RankResult | None = None
        self.aftermath: Failure | None = None
        self.is_open = True
        self._buffer = b""

    def receive(self) -> bool:
        """Take in what has arrived; false when the rank is gone.

        Raises:
            ProtocolError: It is not what a rank says.
        """
        try:
            chunk = self.socket.recv(1 << 16)
        except ConnectionError:
            chunk = b""
        self._buffer += chunk
        if len(self._buffer) > _MAX_BYTES:
            raise ProtocolError(
                f"rank {self.expected_rank} sent over {_MAX_BYTES} bytes without an end."
            )
        for line in self._lines():
            self._understand(line)
        return bool(chunk)

    def welcome(self, page: StatusPage) -> None:
        """Give the rank its page; nothing happens where it is gone."""
        with suppress(OSError):
            socket.send_fds(self.socket, [b"p"], [page.descriptor])

    def ask_to_end(self, wish: Wish) -> None:
        """Ask the rank to end the run; nothing happens where it is gone."""
        with suppress(OSError):
            self.socket.sendall(bytes([wish]))

    def close(self) -> None:
        """Hang up; a rank that is still there leaves."""
        self.is_open = False
        self.socket.close()

    def _lines(self) -> Iterator[bytes]:
        *lines, self._buffer = self._buffer.split(b"\n")
        yield from lines

    def _understand(self, line: bytes) -> None:
        try:
            # Unlike the standard library's, this parser refuses what is nested without an end.
            message = pydantic_core.from_json(line)
            if "hello" in message:
                self._meet(_HELLO.validate_python(message))
            elif "failure" in message:
                self.failure = _FAILURE.validate_python(message["failure"])
            elif "result" in message:
                self.result = _RESULT.validate_python(message["result"])
            else:
                self.aftermath = _FAILURE.validate_python(message["aftermath"])
        except (ValueError, KeyError, TypeError) as error:
            raise ProtocolError(
                f"rank {self.expected_rank} sent {line[:80]!r}: {error!s:.200}."
            ) from None

    def _meet(self, hello: _Hello) -> None:
        if self.rank >= 0 or hello.hello != self.expected_rank:
            raise ValueError(f"expected one hello of rank {self.expected_rank}")
        self.rank, self.pid = hello.hello, hello.pid
