"""What do N processes ask of the store of torchrun's agents, and what breaks first as N grows?

The store is one process. Here it is one of its own, too, and the others are threads of a few
processes: each is a ``World`` with a connection of its own that does what every process of a run
does. It finds the name of the start, meets the others (as after the proof of the run folder, and
before training), tells the first what a stage came to, and takes one turn of the board, as it does
every second while the run goes on. In the last step one of them has died and all others look for
the reason, for one second beside a turn of the board; eight processes share a host.

Reading: the seconds for which the store computed, and those until all were through. All run on one
machine, so its cores do the work of all hosts; on real ones it is the store's own time that limits.
Requests of who waits and looks again are counted. Medians of the repeats. Run from the
repository's root::

    python -m benchmarks.scale.start --json benchmarks/scale/start.json
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Spread, new_parser, write_report
from torch.distributed import PrefixStore, TCPStore

from ppll.errors import ChannelTimeout
from ppll.hosts.roster import Roster
from ppll.mesh import Mesh
from ppll.status import Activity, Status
from ppll.world import World, name_of_start

SIZES: Final = (64, 256, 1024)
OWNERS: Final = 4
"""Processes that the threads share."""
PER_HOST: Final = 8
RESULT: Final = {"digests": ["blocks.0.layer.weight float32 64,64,3,3 " + 64 * "f"] * 24}
"""About as much as a stage has to say at the end: 2.6 kB."""
STATUS: Final = Status(
    Activity.LEARN, 1e5, 3, 12345, 17, 1580160, 3, 4, 1.25, 0.5, 1e4, 1e3, 1 << 29
)
STEPS: Final = ("name", "meet", "collect", "board", "aftermath")
Mark = tuple[float, float]
"""The time, and for how long the store has computed."""


class Counted:
    """A store that counts what it is asked."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.num_requests = 0

    def __getattr__(self, name: str) -> Any:
        self.num_requests += 1
        return getattr(self._store, name)


class Process:
    """One process of the run, in a thread."""

    def __init__(self, size: int, rank: int, port: int) -> None:
        self._size, self._rank = size, rank
        self._store: Any = TCPStore("127.0.0.1", port, timeout=timedelta(seconds=300))
        self._roster = Roster(rank, Mesh.of(size), "host-17 (10.77.0.17)")

    def take(self, step: str) -> int:
        """What a run does at one point; how often it asked."""
        store = Counted(self._store)
        local_rank, host = self._rank % PER_HOST, self._rank // PER_HOST
        world = World(self._rank, self._size, local_rank, PER_HOST, host, "", "", store, store)
        match step:
            case "name":
                self._store = PrefixStore(name_of_start(store, self._rank, self._size), self._store)
            case "meet":
                world.meet("ready")
            case "collect":
                world.collect("result", RESULT)
            case "board":
                self._take_turn(store)
            case "aftermath":
                self._take_turn(store)
                with suppress(ChannelTimeout):
                    world.read("verdict", 1.0)
        return store.num_requests

    def _take_turn(self, store: Counted) -> None:
        """As ``Board`` does."""
        self._roster.show(store, STATUS)
        store.check(["end"])
        store.check(["verdict"])
        if self._rank % PER_HOST < 2:
            self._roster.look(store, time.monotonic())


def own(size: int, ranks: range, port: int, server: int, together: Any, results: Any) -> None:
    """Some of the processes, in threads; one of them looks at the clocks between the steps."""
    marks: list[Mark] = []

    def mark() -> None:
        together.wait()
        marks.append((time.monotonic(), computed_s(server)))
        together.wait()

    meet = threading.Barrier(len(ranks), action=mark)

    def attend(rank: int) -> list[int]:
        process, counts = Process(size, rank, port), []
        meet.wait()
        for step in STEPS:
            counts.append(process.take(step))
            meet.wait()
        return counts

    with ThreadPoolExecutor(len(ranks)) as pool:
        counts = list(pool.map(attend, ranks))
    results.put((marks, [sum(each) for each in zip(*counts, strict=True)]))


def computed_s(process: int) -> float:
    """Seconds for which a process has computed."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def serve(ports: Any, done: Any) -> None:
    """The agents' store."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ports.put(server.port)
    done.wait()


def measure(size: int) -> list[dict[str, float]]:
    """Seconds and requests of every step."""
    context = multiprocessing.get_context("spawn")
    ports, results, done = context.Queue(), context.Queue(), context.Event()
    together = context.Barrier(OWNERS)
    server = context.Process(target=serve, args=(ports, done))
    server.start()
    port = ports.get()
    owners = [
        context.Process(
            target=own,
            args=(size, range(first, size, OWNERS), port, server.pid, together, results),
        )
        for first in range(OWNERS)
    ]
    for owner in owners:
        owner.start()
    found = [results.get() for _ in owners]
    for owner in owners:
        owner.join()
    done.set()
    server.join()
    marks: list[Mark] = found[0][0]
    requests = [sum(each) for each in zip(*(counts for _, counts in found), strict=True)]
    return [
        {"seconds": end[0] - begin[0], "store_s": end[1] - begin[1], "requests": asked}
        for (begin, end), asked in zip(itertools.pairwise(marks), requests, strict=True)
    ]


def main() -> None:
    args = new_parser(__doc__, repeats=3).parse_args()
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        repeats = [measure(size) for _ in range(args.repeats)]
        for index, step in enumerate(STEPS):
            found = {
                key: Spread.of([repeat[index][key] for repeat in repeats])
                for key in ("store_s", "seconds", "requests")
            }
            rows.append({"processes": size, "step": step})
            rows[-1] |= {key: spread.to_dict() for key, spread in found.items()}
            print(
                f"{size:5} processes, {step:<7} store {found['store_s'].text(2, ' s')}, all "
                f"{found['seconds'].text(2, ' s')}, {found['requests'].text(0)} requests",
                flush=True,
            )
    write_report(args, rows)


if __name__ == "__main__":
    main()
