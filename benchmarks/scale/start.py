"""How long do N processes need to hear from each other, and what breaks first as N grows?

Every process has a connection of its own to the store of torchrun's agents, which is one process.
Here that store is a process of its own, too, and the others are threads of a few processes: each
is a ``World`` that does what every process of a run does. It finds the name of the start, meets
the others (as after the proof of the run folder, and before training) and tells the first what a
stage came to. All run on one machine, so its cores do the work of all hosts: real ones take less.

Reading: seconds from the moment at which all are connected until the last one has heard all, the
median of the repeats. Requests are counted, those of who waits and looks again included. The
proof of the run folder gives up after two minutes. Run from the repository's root::

    python -m benchmarks.scale.start --json benchmarks/scale/start.json
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Final

from benchmarks.report import Spread, new_parser, write_report
from torch.distributed import PrefixStore, TCPStore

from ppll.world import World, _name_of_start

SIZES: Final = (64, 256, 1024)
OWNERS: Final = 4
"""Processes that the threads share."""
RESULT: Final = {"digests": ["blocks.0.layer.weight float32 64,64,3,3 " + 64 * "f"] * 24}
"""About as much as a stage has to say at the end."""
STEPS: Final = ("name", "ready", "result")


class Counted:
    """A store that counts what it is asked."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.num_requests = 0

    def __getattr__(self, name: str) -> Any:
        self.num_requests += 1
        return getattr(self._store, name)


def attend(size: int, rank: int, port: int, meet: threading.Barrier) -> dict[str, Any]:
    """One process: when it began and ended every step, and how often it asked."""
    client = TCPStore("127.0.0.1", port, timeout=timedelta(seconds=300))
    meet.wait()
    client.add("connected", 1)
    while client.add("connected", 0) < size:
        time.sleep(0.2)
    times, counts = [time.monotonic()], []
    counted = Counted(client)
    name = _name_of_start(counted, rank, size)
    times.append(time.monotonic())
    counts.append(counted.num_requests)
    for step in STEPS[1:]:
        counted = Counted(PrefixStore(name, client))
        world = World(rank, size, rank % 8, 8, rank // 8, "host", "", counted, counted)
        if step == "ready":
            world.meet(step)
        else:
            world.collect(step, RESULT)
        times.append(time.monotonic())
        counts.append(counted.num_requests)
    return {"times": times, "counts": counts}


def own(size: int, ranks: range, port: int, results: Any) -> None:
    """Some of the processes, in threads."""
    meet = threading.Barrier(len(ranks))
    with ThreadPoolExecutor(len(ranks)) as pool:
        found = list(pool.map(lambda rank: attend(size, rank, port, meet), ranks))
    results.put(found)


def serve(ports: Any, done: Any) -> None:
    """The agents' store."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ports.put(server.port)
    done.wait()


def measure(size: int) -> list[dict[str, Any]]:
    """Seconds and requests of every step."""
    context = multiprocessing.get_context("spawn")
    ports, results, done = context.Queue(), context.Queue(), context.Event()
    server = context.Process(target=serve, args=(ports, done))
    server.start()
    port = ports.get()
    owners = [
        context.Process(target=own, args=(size, range(first, size, OWNERS), port, results))
        for first in range(OWNERS)
    ]
    for owner in owners:
        owner.start()
    found = [entry for _ in owners for entry in results.get()]
    for owner in owners:
        owner.join()
    done.set()
    server.join()
    return [_step(found, index) for index in range(len(STEPS))]


def _step(found: list[dict[str, Any]], index: int) -> dict[str, Any]:
    """A step lasts from when the last one was through the step before."""
    begin_s = max(entry["times"][index] for entry in found)
    if index == 0:
        begin_s = min(entry["times"][0] for entry in found)
    end_s = max(entry["times"][index + 1] for entry in found)
    return {
        "seconds": end_s - begin_s,
        "requests": sum(entry["counts"][index] for entry in found),
    }


def main() -> None:
    args = new_parser(__doc__, repeats=3).parse_args()
    rows = []
    for size in SIZES:
        repeats = [measure(size) for _ in range(args.repeats)]
        for index, step in enumerate(STEPS):
            spread = Spread.of([repeat[index]["seconds"] for repeat in repeats])
            requests = [repeat[index]["requests"] for repeat in repeats]
            rows.append(
                {"processes": size, "step": step, "requests": requests}
                | {"seconds": spread.to_dict()}
            )
            print(
                f"{size:5} processes, {step:<7} {spread.text(2, ' s')}, "
                f"{max(requests):,} requests at most",
                flush=True,
            )
    print(f"a result is {len(json.dumps(RESULT)):,} bytes; {os.cpu_count()} cores")
    write_report(args, rows)


if __name__ == "__main__":
    main()
