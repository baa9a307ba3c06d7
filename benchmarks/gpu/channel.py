"""What does a message between two ranks on one GPU take, beside the way through host memory?

Method: two processes on one device; 8 slots. ``device`` is the channel whose slots lie on the GPU;
``host`` is the shared channel in host memory: the sender brings the tensor to the processor, the
receiver back to the device, as a run does with ``runtime.transport = "shared"``.

- alone: one message at a time, from the call of ``send`` to where the receiver's GPU has read it
  (it copies the last byte and is waited for); one monotonic clock, one way, median of 100
  messages, of 20 where they are large.
- streaming: as fast as the slots allow; the receiver's GPU reads the last byte of each. GB/s are
  bytes of all messages after the first 16, by the time until the receiver's GPU has read the last.

Both are repeated in the same two processes.

Reading: on one GPU a message is one copy in its memory, and both processes take turns on the GPU,
so the figures say what the way costs, not what two GPUs would give.

Run from the repository's root: ``python -m benchmarks.gpu.channel --device cuda``
"""

from __future__ import annotations

import argparse
import multiprocessing
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from benchmarks.report import Spread, new_parser, write_report

from ppll.channels.base import SlotLayout
from ppll.channels.shared import SharedReceiveEnd, SharedSendEnd
from ppll.message import FEATURES, Kind, Message

_CAPACITY: Final = 8
_ALONE: Final = (20, 100)
_WARM: Final = 16
_STREAMED_BYTES: Final = 1 << 32
_TIMEOUT_S: Final = 60.0
_PROCESSOR: Final = torch.device("cpu")


class Route(NamedTuple):
    """What both processes know."""

    path: Path
    secret: bytes
    num_bytes: int
    num_alone: int
    num_streamed: int
    num_repeats: int
    device: str
    on_device: bool

    @property
    def ends_on(self) -> torch.device:
        """Where the channel's ends take and give tensors."""
        return torch.device(self.device) if self.on_device else _PROCESSOR


def main() -> None:
    options = _parse()
    rows = []
    for num_bytes in options.sizes:
        for way in ("device", "host"):
            rows.append(_measure(options, num_bytes, way))
            row = rows[-1]
            alone, rate = row["microseconds_alone"], row["gigabytes_per_second"]
            print(
                f"{way:>6} {num_bytes >> 10:>7,} KiB: {alone['median']:>8,.0f} us alone, "
                f"{rate['median']:>7.2f} GB/s",
                flush=True,
            )
            write_report(options, rows)


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__, repeats=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="try the script on few messages")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[4 << 10, 4 << 20, 64 << 20], metavar="BYTES"
    )
    options = parser.parse_args()
    options.device = "cuda:0" if options.device == "cuda" else options.device
    return options


def _measure(options: argparse.Namespace, num_bytes: int, way: str) -> dict[str, Any]:
    num_streamed = max(16, min(2000, _STREAMED_BYTES // num_bytes)) if not options.tiny else 16
    least, most = _ALONE
    with tempfile.TemporaryDirectory(prefix="ppll-") as folder:
        route = Route(
            path=Path(folder) / "channel",
            secret=secrets.token_bytes(32),
            num_bytes=num_bytes,
            num_alone=max(least, min(most, _STREAMED_BYTES // 4 // num_bytes)),
            num_streamed=num_streamed,
            num_repeats=options.repeats,
            device=options.device,
            on_device=way == "device",
        )
        alone, rates = zip(*_run_both(route), strict=True)
    return {
        "way": way,
        "bytes": num_bytes,
        "microseconds_alone": Spread.of([1e6 * seconds for seconds in alone]).to_dict(),
        "gigabytes_per_second": Spread.of(rates).to_dict(),
    }


def _run_both(route: Route) -> list[tuple[float, float]]:
    """Seconds of a message alone, and GB/s of a stream, of every repeat."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    pace, paced = context.Pipe()
    ours, theirs = context.Pipe(duplex=False)
    sides = ((_send, paced), (_receive, pace, theirs))
    processes = [
        context.Process(target=side, args=(route, *ends), daemon=True) for side, *ends in sides
    ]
    for process in processes:
        process.start()
    for end in (pace, paced, theirs):
        end.close()
    try:
        if not ours.poll(2 * _TIMEOUT_S):
            raise SystemExit(f"nothing was measured within {2 * _TIMEOUT_S:g} s: {route}")
        result: list[tuple[float, float]] = ours.recv()
        for process in processes:
            process.join(_TIMEOUT_S)
        return result
    except EOFError:
        raise SystemExit(f"a process failed, see above: {route}") from None
    finally:
        for process in processes:
            process.kill()


def _send(route: Route, pace: Connection) -> None:
    end = SharedSendEnd.connect(route.path, route.secret, _TIMEOUT_S, device=route.ends_on)
    features = torch.zeros(route.num_bytes, dtype=torch.uint8, device=route.device)
    _finish(route)
    num_messages = route.num_alone + _WARM + route.num_streamed
    for sequence in range(route.num_repeats * num_messages):
        if sequence % num_messages <= route.num_alone:
            pace.recv()
            pace.send(time.monotonic())
        message = Message(
            kind=Kind.TRAIN, sequence=sequence, step=sequence, tensors={FEATURES: features}
        )
        end.send(message, _TIMEOUT_S)
        end.flush()
        if end.device != route.ends_on:
            raise SystemExit("the channel took the way through the host; the line above says why")
    pace.recv()
    end.close()


def _receive(route: Route, pace: Connection, result: Connection) -> None:
    layout = SlotLayout({FEATURES: route.num_bytes})
    end = SharedReceiveEnd.listen(route.path, layout, _CAPACITY, route.secret, device=route.ends_on)
    end.accept(_TIMEOUT_S)
    last = torch.zeros(1, dtype=torch.uint8, device=route.device)

    def take() -> None:
        message = end.recv(_TIMEOUT_S)
        last.copy_(message.on(torch.device(route.device)).features[-1:])
        end.release(message)

    pairs = [_repeat(route, pace, take) for _ in range(route.num_repeats)]
    pace.send(None)
    end.close()
    result.send(pairs)


def _repeat(route: Route, pace: Connection, take: Callable[[], None]) -> tuple[float, float]:
    alone = statistics.median(_take_alone(route, pace, take) for _ in range(route.num_alone))
    pace.send(None)
    pace.recv()
    for _ in range(_WARM):
        take()
    _finish(route)
    start = time.monotonic()
    for _ in range(route.num_streamed):
        take()
    _finish(route)
    seconds = time.monotonic() - start
    return alone, route.num_streamed * route.num_bytes / seconds / 1e9


def _take_alone(route: Route, pace: Connection, take: Callable[[], None]) -> float:
    pace.send(None)
    sent: float = pace.recv()
    take()
    _finish(route)
    return time.monotonic() - sent


def _finish(route: Route) -> None:
    """Wait until the GPU has done everything."""
    if route.device.startswith("cuda"):
        torch.cuda.synchronize(route.device)


if __name__ == "__main__":
    main()
