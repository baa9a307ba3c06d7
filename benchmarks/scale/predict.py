"""What becomes of a pipeline that grows to 1,024 stages, and of its replicas?

Method: every stage keeps its work (10 ms until it sends, 20 ms to learn), its features (2 MiB) and
its gradients (16 MiB); hosts run eight stages each and are joined by 100 Gb/s (12.5 GB/s, 20 us).
``ppll.simulation.clusters`` simulates 2,000 batches, with and without jitter of 10 % on every work,
with one stage that is a tenth slower, on a network of 10 Gb/s, with 2, 8 and 32 replicas, and with
one stage that takes twice as long, alone and with 2 and 4 replicas of its own. Gradients are made
evenly while a stage learns, and added up beside that. What all processes ask of the store of
torchrun's agents is measured by ``benchmarks.scale.start``.

Reading: a batch takes 30 ms where nothing is lost. Run from the repository's root::

    python -m benchmarks.scale.predict --json benchmarks/scale/predicted.json
"""

from __future__ import annotations

from typing import Any

from benchmarks.report import new_parser, write_report

from ppll.simulation.clusters import Cluster, simulate_cluster
from ppll.simulation.simulate import Link, StageTimes

MIB = 2**20
STAGE = StageTimes(0.010, 0.020, 2 * MIB)
IDEAL_S = 0.030
GRADIENT_BYTES = 16 * MIB
STAGES = (4, 16, 64, 256, 1024)
INSIDE = Link(8e9, 60e-6)
FAST, SLOW = Link(12.5e9, 20e-6, buffers=True), Link(1.25e9, 20e-6, buffers=True)
PER_HOST = 8
BATCHES = 2000

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
    write_report(args, rows)


if __name__ == "__main__":
    main()
