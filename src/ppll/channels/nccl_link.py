"""A GPU's way to a GPU of another host: NCCL, in the order of streams.

::

    sender's stream ──features──┐               ┌─ flush: waits for the copy
    side stream     wait sent ▶ └▶ copy ▶ send ═══╗
                                                  ║ NCCL
    receiver's side stream       wait freed ▶ receive ▶ filled: a thread waits

NCCL notices no death of the other end that it could tell from a long wait, so the gloo connection
beside it is what says that somebody is gone; then whoever is left gives the communicator up.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, distributed
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from ppll.channels.group_link import FOREVER, SENDER, GroupLink
from ppll.channels.memory import PROCESSOR
from ppll.channels.side_stream import SideStream
from ppll.errors import ChannelClosed, ChannelError, ChannelTimeout

__all__ = ["NcclLink", "links_to"]

_log = logging.getLogger(__name__)

_ABORT_S: Final = 5.0
"""How long giving a communicator up may keep who leaves; it may never end (NVIDIA/nccl#1777)."""
_WAY_OUT: Final = 'runtime.transport = "shared" takes the hosts\' memory and gloo instead.'


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
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def reserve(self, slot_bytes: int, num_slots: int) -> list[Tensor]:
        """Slots of the GPU's memory, which nothing that was queued before still uses.

        Raises:
            ChannelError: There is not so much.
        """
        try:
            slots = [
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
        return slots

    def event(self) -> torch.cuda.Event:
        """An event that is over."""
        return torch.cuda.Event()  # type: ignore[no-untyped-call]

    def record(self, event: torch.cuda.Event) -> None:
        """Let an event be over when what the caller has queued so far is."""
        event.record(torch.cuda.current_stream(self.device))

    def send(self, content: Tensor) -> Any:
        """Queue a send behind the current stream; ``wait`` lets the then current one wait.

        Raises:
            ChannelClosed: The communicator was given up.
            ChannelError: NCCL or CUDA cannot.
        """
        with self._explained("sent from"):
            return self._group.send([content], self._peer, 0)

    def receive(self, content: Tensor, freed: torch.cuda.Event) -> torch.cuda.Event:
        """Queue a receive behind an event; the one that comes back is over when it is.

        It is also over when the communicator was given up; errors are those of ``send``.
        """
        filled = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        with self._explained("received on"), torch.cuda.stream(self._stream):
            freed.wait(self._stream)
            self._group.recv([content], self._peer, 0).wait()
            filled.record(self._stream)
        return filled

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if self._is_given_up:
                raise ChannelClosed("the other end is gone.") from None
            raise ChannelError(f"a message cannot be {what} {self.device}: {error}") from error

    def give_up(self) -> None:
        """End whatever is on its way; may be called twice."""
        self._is_given_up = True
        _within(_ABORT_S, self._group.abort)


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
    # Else torch ends this process when the other's has ended, and it could not say why.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
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
