"""A GPU's way to a GPU of another host: NCCL, in the order of streams.

::

    sender's stream ──features──┐          ┌─ flush: waits for the copy
    side stream                 └▶ copy ▶ send ═══╗
                                                  ║ NCCL
    receiver's side stream       wait freed ▶ receive ▶ filled: a thread waits

NCCL notices no death of the other end that it could tell from a long wait, so the gloo connection
beside it is what says that somebody is gone; then whoever is left gives the communicator up.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, distributed
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from ppll.channels.group_link import FOREVER, SENDER, GroupLink
from ppll.channels.memory import PROCESSOR
from ppll.channels.side_stream import SideStream
from ppll.errors import ChannelClosed, ChannelError, ChannelTimeout, TransportError

__all__ = ["NcclLink", "links_to"]

_log = logging.getLogger(__name__)

_CALL_S: Final = 1.0
_END_S: Final = 5.0
_WAY_OUT: Final = 'runtime.transport = "shared" takes the hosts\' memory and gloo instead.'

_TORCHS_OWN: Final = (
    *("TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_RETHROW_CUDA_ERRORS"),
    *("TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC"),
    *("TORCH_NCCL_ENABLE_MONITORING", "TORCH_NCCL_BLOCKING_WAIT"),
)
"""What torch does by itself when NCCL or CUDA fails, or seems to: it ends this process before that
could say why, waits, gives a communicator up behind our back, or leaves a note in the agents' store
that ends the next start."""


_left: list[NcclLink] = []
"""What NCCL may still use."""


class NcclLink:
    """A communicator of two GPUs, and the streams on which it is used.

    Args:
        group: A ``ProcessGroupNCCL`` of two whose communicator is there.
        rank: ``SENDER`` or ``RECEIVER``.
        device: This end's GPU.
    """

    def __init__(self, group: Any, rank: int, device: torch.device) -> None:
        self.device = device
        self.side = SideStream(device, device)
        self._group = group
        self._peer = 1 - rank
        self._is_given_up = False
        self._calling = threading.Lock()
        self._ending: threading.Thread | None = None
        self._slots: list[Tensor] = []  # for as long as NCCL may use them
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def reserve(self, slot_bytes: int, num_slots: int) -> list[Tensor]:
        """Slots of the GPU's memory, which nothing that was queued before still uses.

        Raises:
            ChannelError: There is not so much.
        """
        try:
            self._slots = [
                torch.empty(slot_bytes, dtype=torch.uint8, device=self.device)
                for _ in range(num_slots)
            ]
        except torch.OutOfMemoryError:
            raise ChannelError(
                f"cannot reserve {slot_bytes * num_slots / 2**20:,.0f} MiB for messages on "
                f"{self.device}: it has not so much left. Lower runtime.capacity or "
                "data.batch_size."
            ) from None
        torch.cuda.synchronize(self.device)
        return self._slots

    def event(self) -> torch.cuda.Event:
        """An event that is over."""
        return torch.cuda.Event()  # type: ignore[no-untyped-call]

    def record(self, event: torch.cuda.Event) -> None:
        """Let an event be over when what the caller has queued so far is."""
        event.record(torch.cuda.current_stream(self.device))

    def send(self, content: Tensor) -> None:
        """Queue a send behind the current stream.

        Raises:
            ChannelClosed: The communicator was given up.
            TransportError: NCCL or CUDA cannot.
        """
        with self._explained("sent from"):
            self._group.send([content], self._peer, 0)

    def receive(self, content: Tensor, freed: torch.cuda.Event) -> torch.cuda.Event:
        """Queue a receive behind an event; the one that comes back is over when it is.

        It is also over when the communicator was given up; errors are those of ``send``.
        """
        filled = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        on_device = torch.cuda.device(self.device)  # torch would go back to another GPU
        with self._explained("received on"), on_device, torch.cuda.stream(self._stream):
            freed.wait(self._stream)
            self._group.recv([content], self._peer, 0).wait()
            filled.record(self._stream)
        return filled

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Call NCCL inside, which frees what it is called with when it is given up meanwhile."""
        with self._calling:
            if self._is_given_up:
                raise ChannelClosed("the other end is gone.")
            try:
                yield
            except RuntimeError as error:
                raise TransportError(
                    f"a message cannot be {what} {self.device}: {error}"
                ) from error

    def give_up(self, after_s: float = 0.0) -> None:
        """End whatever is on its way, in a thread; it may never end (NVIDIA/nccl#1777)."""
        self._is_given_up = True
        self._ending = threading.Thread(
            target=self._end, args=(after_s,), name="nccl-end", daemon=True
        )
        self._ending.start()

    def _end(self, after_s: float) -> None:
        time.sleep(after_s)
        has_lock = self._calling.acquire(timeout=_CALL_S)  # a call may hang as well
        try:
            self._group.abort()
        except RuntimeError as error:
            _log.warning("NCCL cannot end a connection: %s", error)
        finally:
            if has_lock:
                self._calling.release()

    def close(self) -> None:
        """Wait a while until that has ended; what has not keeps its memory to the process's end."""
        if self._ending is not None:
            self._ending.join(_END_S)
        if self._ending is None or self._ending.is_alive():
            _left.append(self)


def connect(store: Store, name: str, rank: int, device: torch.device, timeout_s: float) -> NcclLink:
    """Connect two GPUs.

    Args:
        store: What both ends can reach, and no other channel.
        name: Of the channel, the same at both ends.
        rank: ``SENDER`` or ``RECEIVER``.
        device: This end's GPU.
        timeout_s: Seconds to wait until both are connected.

    Raises:
        ChannelTimeout: They were not in time.
        ChannelError: They cannot connect.
    """
    made: list[Any] = []
    error = _within(timeout_s, lambda: made.append(_communicator(store, rank, device)))
    if isinstance(error, TimeoutError):
        raise ChannelTimeout(
            f"NCCL has not connected channel {name!r} within {timeout_s:g} s: NCCL_SOCKET_IFNAME "
            f"says over which interface, NCCL_DEBUG=INFO shows what it tries; {_WAY_OUT}"
        )
    if error is not None:
        raise ChannelError(f"NCCL cannot connect channel {name!r}: {error}\n{_WAY_OUT}") from error
    return NcclLink(made[0], rank, device)


def _communicator(store: Store, rank: int, device: torch.device) -> Any:
    """A process group of two whose communicator is there, which torch makes when it is used."""
    os.environ.update(dict.fromkeys(_TORCHS_OWN, "0"))
    nccl: Any = distributed.ProcessGroupNCCL
    options = nccl.Options()
    options._timeout = FOREVER
    with torch.cuda.device(device):
        group = nccl(PrefixStore("nccl", store), rank, 2, options)
        word = torch.zeros(1, dtype=torch.uint8, device=device)
        pass_on = group.send if rank == SENDER else group.recv
        pass_on([word], 1 - rank, 0).wait()
        torch.cuda.current_stream(device).synchronize()
    return group


def links_to(
    store: Store,
    name: str,
    rank: int,
    address: str | None,
    timeout_s: float,
    device: torch.device,
) -> tuple[GroupLink, NcclLink | None]:
    """The connection to the other end, and that of the GPUs where both ends compute on one.

    Arguments and errors are those of ``GroupLink`` and ``NcclLink``.
    """
    offers = "NCCL" if device != PROCESSOR and _is_available() else ""
    group = GroupLink(store, name, rank, address, timeout_s, offers=offers)
    if offers and group.is_agreed:
        return group, connect(group.store, name, rank, device, timeout_s)
    if device != PROCESSOR:
        reason = "the other end does not offer NCCL" if offers else "this torch has no NCCL"
        _log.warning("channel %r goes through the host's memory: %s.", name, reason)
    return group, None


def _is_available() -> bool:
    """Whether this build of torch has NCCL."""
    return distributed.is_available() and distributed.is_nccl_available()


def _within(timeout_s: float, act: Callable[[], object]) -> Exception | None:
    """Do it in a thread, which is left behind where it takes longer; what went wrong."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            act()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="nccl", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return TimeoutError() if thread.is_alive() else next(iter(errors), None)
