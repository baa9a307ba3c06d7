"""Does the simulation of hosts and replicas say what emulated devices on slow links take?

Hosts are network namespaces of this machine, joined by a switch; ``tc ... tbf`` shapes every link.
Each host runs one stage of one replica, which sleeps where it would compute; processes, the worker,
the channel between hosts and the line of replicas are the real ones. The simulation is told the
block's times, the bandwidth that the links are shaped to less what TCP/IP takes of it, and a
latency and a time beyond the block's own that are measured first, on a stage alone and on two
replicas with next to no gradients.

Reading: the deviation is measured to simulated seconds a batch in steady state, less one. The
target is at most 10 % on every set-up. Linux, as root. Run from the repository's root::

    python -m benchmarks.scale.measure --json benchmarks/scale/result.json
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from dataclasses import dataclass

from benchmarks.report import new_parser, write_report
from tests.namespaces import Network, network, outputs, reason_for_none

from ppll.clusters import Cluster, simulate_cluster
from ppll.simulate import Link, StageTimes

GOODPUT = 1448 / 1538
"""Bytes of a message among those on the wire."""
MIB = 2**20
WARM_UP, BATCHES = 10, 30


@dataclass(frozen=True)
class SetUp:
    """Stages and replicas, a host each; MiB of a stage's gradients and of features."""

    stages: int
    replicas: int
    megabits: int
    parameters_mib: float = 1.0
    payload_mib: float = 1.0
    forward_s: float = 0.02
    learn_s: float = 0.04

    @property
    def name(self) -> str:
        """For people."""
        link = f"{self.megabits} Mb/s"
        return f"{self.stages} x {self.replicas}, {self.parameters_mib:g} MiB, {link}"


SET_UPS = (
    SetUp(4, 1, 1000),
    SetUp(4, 1, 100),
    SetUp(2, 2, 1000),
    SetUp(2, 2, 1000, parameters_mib=8),
    SetUp(2, 2, 100),
    SetUp(1, 3, 1000, parameters_mib=4),
    SetUp(1, 4, 1000, parameters_mib=8),
    SetUp(1, 4, 100, parameters_mib=2),
)
ALONE = SetUp(1, 1, 1000)
TOGETHER = SetUp(1, 2, 1000, parameters_mib=1e-5)


def measure(set_up: SetUp) -> float:
    """Seconds a batch in steady state."""
    with network(set_up.stages * set_up.replicas) as net:
        net.shape(set_up.megabits)
        ends = _run(net, set_up)
    last = [max(times) for times in zip(*ends, strict=True)]
    return (last[-1] - last[WARM_UP - 1]) / BATCHES


def _run(net: Network, set_up: SetUp) -> list[list[float]]:
    with tempfile.TemporaryDirectory(prefix="ppll-") as folder:
        processes = [
            net.start(
                rank,
                *(sys.executable, "-m", "benchmarks.scale.rank", f"--folder={folder}"),
                *(f"--address={net.address(rank)}", f"--rank={rank}"),
                *(f"--stages={set_up.stages}", f"--replicas={set_up.replicas}"),
                *(f"--batches={BATCHES + WARM_UP}", f"--forward-s={set_up.forward_s}"),
                *(f"--learn-s={set_up.learn_s}", f"--payload-mib={set_up.payload_mib}"),
                f"--parameters-mib={set_up.parameters_mib}",
            )
            for rank in range(net.num_hosts)
        ]
        printed = outputs(processes, timeout_s=300)
    if any(process.returncode for process in processes):
        raise RuntimeError("\n".join(printed))
    return [json.loads(text.splitlines()[-1]) for text in printed]


def simulated(set_up: SetUp, own_s: float, latency_s: float) -> float:
    """The same in the simulation."""
    link = Link(GOODPUT * set_up.megabits * 1e6 / 8, latency_s, buffers=True)
    stage = StageTimes(set_up.forward_s + own_s, set_up.learn_s, set_up.payload_mib * MIB)
    cluster = Cluster(1, link, link, set_up.replicas)
    stages, gradients = [stage] * set_up.stages, [set_up.parameters_mib * MIB] * set_up.stages
    return simulate_cluster(cluster, stages, gradients, 500).seconds_per_batch


def main() -> None:
    parser = new_parser(__doc__, repeats=3)
    args = parser.parse_args()
    if (reason := reason_for_none()) is not None:
        raise SystemExit(reason)
    alone_s = statistics.median(measure(ALONE) for _ in range(args.repeats))
    own_s = max(0.0, alone_s - ALONE.forward_s - ALONE.learn_s)
    together_s = statistics.median(measure(TOGETHER) for _ in range(args.repeats))
    # Two rows, each there and back.
    latency_s = max(0.0, together_s - alone_s) / 4
    print(f"own {1e3 * own_s:.2f} ms, latency {1e6 * latency_s:.0f} us", flush=True)
    rows = []
    for set_up in SET_UPS:
        values = [measure(set_up) for _ in range(args.repeats)]
        expected, found = simulated(set_up, own_s, latency_s), statistics.median(values)
        rows.append(
            {"set_up": set_up.name, "simulated_s": expected, "measured_s": found}
            | {"repeats_s": values, "deviation": found / expected - 1}
        )
        print(
            f"{set_up.name:<28} simulated {1e3 * expected:7.1f} ms, measured "
            f"{1e3 * found:7.1f} ms, {100 * (found / expected - 1):+.1f} %",
            flush=True,
        )
    worst = max(abs(row["deviation"]) for row in rows)
    print(f"largest deviation {100 * worst:.1f} %, target 10 %")
    write_report(args, rows)


if __name__ == "__main__":
    main()
