"""A process group of two, and the thread in which one of them waits for the other.

Gloo's work can only be waited for: it cannot be asked whether it is done, and a wait that times out
closes the connection. So each end has a thread that waits without end; whoever closes says so, and
the other answers, and a connection that breaks ends the wait as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import torch
from torch import Tensor
from torch.distributed import (  # type: ignore[attr-defined]
    PrefixStore,
    ProcessGroupGloo,
    Store,
    Work,
)

from ppll.errors import ChannelClosed, ChannelError, ChannelTimeout

__all__ = [
    "CLOSING",
    "CREDIT",
    "END",
    "FOREVER",
    "HEADER",
    "LARGE",
    "LEAVE_S",
    "NOTICE_S",
    "RECEIVER",
    "RELEASED",
    "SENDER",
    "SLOT",
    "GroupLink",
]

SENDER, RECEIVER = 0, 1  # ranks of the two ends in their group
HEADER, SLOT, LARGE, CREDIT = range(4)  # tags
RELEASED, CLOSING = 1, 2  # what a credit's byte says
END: Final = b"PEND"
"""In the place of a header: the sender closes."""
FOREVER: Final = timedelta(days=3650)
_GREETING: Final = 15  # a tag that no channel uses
_GREETING_BYTES: Final = 32
LEAVE_S: Final = 5.0
"""How long an end that closes waits for the other's answer."""
NOTICE_S: Final = 1.0
"""Within this a death that NCCL has noticed is seen on the connection as well."""


class GroupLink:
    """The two ends' process group, and the thread that waits for the other end.

    Args:
        store: What both ends can reach.
        name: Of the channel, the same at both ends.
        rank: ``SENDER`` or ``RECEIVER``.
        address: Of this host, as the other one reaches it; gloo's choice without.
        timeout_s: Seconds to wait for the other end to come.
        offers: What this end could use beside, for ``is_agreed``.

    Raises:
        ChannelTimeout: It did not come in time.
        ChannelError: The two cannot connect, or somebody else has.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        rank: int,
        address: str | None,
        timeout_s: float,
        *,
        offers: str = "",
    ) -> None:
        self._peer = 1 - rank
        self._works: deque[Work] = deque(maxlen=256)  # keeps what is being sent alive
        self.changed = threading.Event()
        self.is_gone = False
        self._why_gone = ""
        self.error: ChannelError | None = None
        """Why this end cannot go on, where it is not that the other has gone."""
        self._thread: threading.Thread | None = None
        store = self.store = PrefixStore(name, store)
        self.is_agreed = _meet(store, name, rank, timeout_s, offers) == offers
        """Whether the other end offers the same."""
        gloo: Any = ProcessGroupGloo  # Torch says nothing of its types.
        options = gloo._Options()
        options._timeout = FOREVER
        where = {"hostname": address} if address else {}
        try:
            options._devices = [gloo.create_device(**where)]
            self._group = gloo(store, rank, 2, options)
        except RuntimeError as error:
            raise ChannelError(f"channel {name!r} cannot be connected: {error}") from None
        self._greet(name, timeout_s)

    def _greet(self, name: str, timeout_s: float) -> None:
        """Make sure that the other end is there, and not a stranger who took its place.

        Gloo takes who connects with the right small number for the other end.
        """
        heard = torch.zeros(_GREETING_BYTES, dtype=torch.uint8)
        deadline = time.monotonic() + timeout_s
        arrives = self.post(heard, _GREETING)
        self.send(_greeting(name, 1 - self._peer), _GREETING)
        try:
            arrives.wait(timedelta(seconds=timeout_s))
        except RuntimeError:
            if time.monotonic() < deadline:
                raise ChannelClosed("the other end is gone.") from None
            raise ChannelTimeout(
                f"{_strange(name)}, and says nothing for {timeout_s:g} s."
            ) from None
        if not torch.equal(heard, _greeting(name, self._peer)):
            raise ChannelError(f"{_strange(name)}: it says something else.")

    def send(self, content: Tensor, tag: int) -> None:
        """Hand bytes to the transport; they must stay as they are until the other end has them.

        Raises:
            ChannelClosed: The other end is gone.
        """
        try:
            self._works.append(self._group.send([content], self._peer, tag))
        except RuntimeError:
            raise ChannelClosed("the other end is gone.") from None

    def post(self, content: Tensor, tag: int) -> Work:
        """Let bytes come into ``content``; ``wait`` of the result returns when they have.

        Raises:
            ChannelClosed: The other end is gone.
        """
        try:
            work: Work = self._group.recv([content], self._peer, tag)
        except RuntimeError:
            raise ChannelClosed("the other end is gone.") from None
        return work

    def listen(self, hear: Callable[[], None], give_up: Callable[[], None]) -> None:
        """Call ``hear``, which waits for the other end, in a thread until that has gone.

        Then ``give_up`` is called there, before others see that it has gone.
        """
        self._thread = threading.Thread(
            target=self._hear_all, args=(hear, give_up), name="channel", daemon=True
        )
        self._thread.start()

    def leave(self, say_so: Callable[[], None], patience_s: float = LEAVE_S) -> None:
        """Say that this end closes, and wait a while until the other has answered."""
        if not self.is_gone:
            with contextlib.suppress(ChannelClosed):
                say_so()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(patience_s)

    def gone(self, who: str) -> ChannelClosed:
        """What is raised where the other end has gone."""
        return ChannelClosed(f"the {who} is gone{self._why_gone}.")

    def fail(self, error: ChannelError) -> None:
        """Say why this end cannot go on, unless it was said before."""
        self.error = self.error or error
        self.changed.set()

    def is_gone_within(self, timeout_s: float) -> bool:
        """Whether the other end is gone, now or before the time is over."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self.is_gone

    def _hear_all(self, hear: Callable[[], None], give_up: Callable[[], None]) -> None:
        try:
            while True:
                hear()
        except RuntimeError as error:  # in gloo's words
            self._why_gone = f" ({error!s:.200})"
        except ChannelClosed:
            pass
        except ChannelError as error:
            self.fail(error)
        give_up()
        self.is_gone = True
        self.changed.set()

    def wait_for_change(self, timeout_s: float | None) -> None:
        """Block until the other end was heard or the time is over."""
        self.changed.wait(timeout_s)
        self.changed.clear()


def _greeting(name: str, rank: int) -> Tensor:
    """What an end says first."""
    digest = hashlib.sha256(f"{name} {rank}".encode()).digest()
    return torch.tensor(list(digest), dtype=torch.uint8)


def _strange(name: str) -> str:
    return f"who has connected to channel {name!r} is not its other end"


def _meet(store: Store, name: str, rank: int, timeout_s: float, offers: str) -> str:
    """Wait until both ends are there, as a group that connects waits for ever; what is offered."""
    store.set(f"end-{rank}", offers)
    try:
        store.wait([f"end-{1 - rank}"], timedelta(seconds=timeout_s))
    except RuntimeError as error:
        raise ChannelTimeout(
            f"nobody came to the other end of channel {name!r} within {timeout_s:g} s ({error})."
        ) from None
    return store.get(f"end-{1 - rank}").decode(errors="replace")
