"""What becomes of a pipeline that grows to 1,024 stages, and of its replicas?

Method: every stage keeps its work (10 ms until it sends, 20 ms to learn), its features (2 MiB) and
its gradients (16 MiB); hosts run eight stages each and are joined by 100 Gb/s (12.5 GB/s, 20 us).
``ppll.clusters`` simulates 2,000 batches, with and without jitter of 10 % on every work, with one
stage that is a tenth slower, on a network of 10 Gb/s, with 2, 8 and 32 replicas, and with one stage
that takes twice as long, alone and with 2 and 4 replicas of its own. Gradients are made evenly
while a stage learns, and added up beside that. The store of torchrun's agents is one process: its
requests a second are measured here, on one machine, and set
against what all processes ask of it at the start and while they run.

Reading: a batch takes 30 ms where nothing is lost. Run from the repository's root::

    python -m benchmarks.scale.predict --json benchmarks/scale/predicted.json
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.dummy import Pool
from typing import Any

from benchmarks.report import new_parser, write_report
from torch.distributed import TCPStore

from ppll.clusters import Cluster, simulate_cluster
from ppll.simulate import Link, StageTimes

MIB = 2**20
STAGE = StageTimes(0.010, 0.020, 2 * MIB)
IDEAL_S = 0.030
GRADIENT_BYTES = 16 * MIB
STAGES = (4, 16, 64, 256, 1024)
INSIDE = Link(8e9, 60e-6)
FAST, SLOW = Link(12.5e9, 20e-6, buffers=True), Link(1.25e9, 20e-6, buffers=True)
PER_HOST = 8
BATCHES = 2000
GATHERS = 3
"""Times that every process hears from every other: the folder, the start, the result."""
PAGE_BYTES = 280
CLIENTS, REQUESTS = 8, 4000

CASES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "jitter 10 %": {"jitter": 0.1},
    "one stage 10 % slower": {"slow_stage": 1.1},
    "10 Gb/s between hosts": {"between": SLOW},
    "2 replicas": {"replicas": 2},
    "8 replicas": {"replicas": 8},
    "32 replicas": {"replicas": 32},
    "8 replicas, jitter 10 %": {"replicas": 8, "jitter": 0.1},
    "8 replicas, 10 Gb/s": {"replicas": 8, "between": SLOW},
    "one stage of twice the work": {"slow_replicas": 1},
    "2 replicas of it": {"slow_replicas": 2},
    "4 replicas of it": {"slow_replicas": 4},
}


def row(name: str, num_stages: int, about: dict[str, Any]) -> dict[str, Any]:
    """One case at one size."""
    stages, replicas = [STAGE] * num_stages, [about.get("replicas", 1)] * num_stages
    if num := about.get("slow_replicas"):
        work, features = (2 * STAGE.before_send_s, 2 * STAGE.after_send_s), STAGE.features_bytes
        stages[num_stages // 2] = StageTimes(*(each / num for each in (*work, features)))
        replicas[num_stages // 2] = num
    cluster = Cluster(PER_HOST, INSIDE, about.get("between", FAST), replicas)
    gradients = (GRADIENT_BYTES,) * num_stages
    stragglers = {num_stages // 2: about["slow_stage"]} if "slow_stage" in about else {}
    options = {"jitter": about.get("jitter", 0.0), "stragglers": stragglers}
    found = simulate_cluster(cluster, stages, gradients, BATCHES, **options)
    first = simulate_cluster(cluster, stages, gradients, 1, **options)
    return {
        "case": name,
        "stages": num_stages,
        "processes": sum(replicas),
        "seconds_per_batch": found.seconds_per_batch,
        "efficiency": IDEAL_S / found.seconds_per_batch,
        "average_s": max(found.average_s),
        "network_s": found.network_s,
        "fill_s": first.pipeline.seconds,
    }


def requests_a_second() -> float:
    """What torch's store answers to several clients, of keys that are there."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    clients = [
        TCPStore("127.0.0.1", server.port, timeout=timedelta(seconds=60)) for _ in range(CLIENTS)
    ]
    server.set("key", "x" * PAGE_BYTES)

    def ask(client: TCPStore) -> None:
        for _ in range(REQUESTS // 2):
            client.check(["key"])
            client.get("key")

    begin_s = time.monotonic()
    with Pool(CLIENTS) as pool:
        pool.map(ask, clients)
    return CLIENTS * REQUESTS / (time.monotonic() - begin_s)


def store_rows(rate: float) -> Iterator[dict[str, Any]]:
    """What the store has to do for so many processes: a check and a get for each that is heard."""
    for num in STAGES:
        watchers = 2 * max(1, num // PER_HOST)
        yield {
            "case": "store",
            "processes": num,
            "start_s": 2 * num * num / rate,
            "pages_mb_s": watchers * num * PAGE_BYTES / 1e6,
        }


def main() -> None:
    args = new_parser(__doc__).parse_args()
    rows = []
    for name, about in CASES.items():
        for num_stages in STAGES:
            found = row(name, num_stages, about)
            rows.append(found)
            print(
                f"{name:<27} {num_stages:5} stages, {found['processes']:6} processes: "
                f"{1e3 * found['seconds_per_batch']:6.1f} ms a batch ({found['efficiency']:.1%}), "
                f"adding up {1e3 * found['average_s']:5.1f} ms, network "
                f"{1e3 * found['network_s']:6.1f} ms, first batch {found['fill_s']:5.1f} s",
                flush=True,
            )
    rate = requests_a_second()
    print(f"the store answers {rate:,.0f} requests a second")
    for found in store_rows(rate):
        rows.append({**found, "requests_a_second": rate})
        print(
            f"{found['processes']:5} processes: one gathering takes the store "
            f"{found['start_s']:6.1f} s, pages {found['pages_mb_s']:6.1f} MB/s"
        )
    write_report(args, rows)


if __name__ == "__main__":
    main()
