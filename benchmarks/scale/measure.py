"""Does the simulation of hosts and replicas say what emulated devices take?

On slow links, hosts are network namespaces of this machine, joined by a switch; ``tc ... tbf``
shapes every link, and each host runs one process. Without, all processes are on this host and
share memory. A process sleeps where it would compute; processes, the worker, the channels, the ends
that cut and join messages and the line of replicas are the real ones. A stage with r replicas has r
times the work of one with one, and each of them the same.

The simulation is told the block's times, the bandwidth that the links are shaped to less what
TCP/IP takes of it (8 GB/s and 60 us in shared memory), and a latency and a time beyond the block's
own that are measured first, on a stage alone and on two replicas with next to no gradients.

Reading: the deviation is measured to simulated seconds a batch in steady state, less one. The
target is at most 10 % on every set-up. Linux, as root. Run from the repository's root::

    python -m benchmarks.scale.measure --json benchmarks/scale/result.json
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass

from benchmarks.report import new_parser, write_report
from tests.namespaces import Network, network, outputs, reason_for_none

from ppll.bench.chain import Chain, run_chain
from ppll.bench.sleeping_block import BlockTimes
from ppll.simulation.clusters import Cluster, simulate_cluster
from ppll.simulation.simulate import Link, StageTimes

GOODPUT = 1448 / 1538
"""Bytes of a message among those on the wire."""
MIB = 2**20
WARM_UP, BATCHES = 10, 30


SHARED = Link(8e9, 60e-6)


@dataclass(frozen=True)
class SetUp:
    """Replicas of every stage; Mb/s of a host's link, or none on one host; MiB of a stage's
    gradients and of the features of a whole batch."""

    replicas: tuple[int, ...]
    megabits: int | None
    parameters_mib: float = 1.0
    payload_mib: float = 1.0
    forward_s: float = 0.02
    learn_s: float = 0.04

    @property
    def name(self) -> str:
        """For people."""
        link = "one host" if self.megabits is None else f"{self.megabits} Mb/s"
        return f"{'-'.join(map(str, self.replicas))}, {self.parameters_mib:g} MiB, {link}"

    @property
    def chain(self) -> Chain:
        """What is run."""
        sizes = [int(self.payload_mib * MIB / replicas) for replicas in self.replicas]
        times = (self.forward_s, self.learn_s)
        gradient_bytes = int(self.parameters_mib * MIB)
        stages = tuple((BlockTimes(*times, size, gradient_bytes),) for size in sizes)
        options = {"keeps_times": True, "replicas": self.replicas}
        return Chain(stages, BATCHES + WARM_UP, **options)


# Shaped links let 256 KiB pass at once when they were idle, so gradients are many times that.
SET_UPS = (
    SetUp((1, 1, 1, 1), 1000),
    SetUp((1, 1, 1, 1), 100),
    SetUp((2, 2), 1000),
    SetUp((2, 2), 1000, parameters_mib=8),
    SetUp((2, 2), 100, parameters_mib=4),
    SetUp((3,), 1000, parameters_mib=4),
    SetUp((4,), 1000, parameters_mib=8),
    SetUp((4,), 100, parameters_mib=2),
    SetUp((1, 2, 1), None, parameters_mib=8, payload_mib=8),
    SetUp((3, 1, 1), None, parameters_mib=2),
    SetUp((1, 2, 4, 1), None),
    SetUp((1, 2, 1), 1000, parameters_mib=4),
    SetUp((1, 2, 1), 100, parameters_mib=4),
    SetUp((3, 1), 1000, parameters_mib=4),
    SetUp((1, 4), 1000, parameters_mib=8, payload_mib=4),
    SetUp((4, 1), 1000, payload_mib=16),
)
ALONE = SetUp((1,), 1000)
TOGETHER = SetUp((2,), 1000, parameters_mib=1e-5)


def measure(set_up: SetUp) -> float:
    """Seconds a batch in steady state."""
    if set_up.megabits is None:
        ends = [report.times_s for report in run_chain(set_up.chain)]
    else:
        with network(sum(set_up.replicas)) as net:
            net.shape(set_up.megabits)
            ends = _run(net, set_up)
    last = [max(times) for times in zip(*ends, strict=True)]
    return (last[-1] - last[WARM_UP - 1]) / BATCHES


def _run(net: Network, set_up: SetUp) -> list[list[float]]:
    chain = json.dumps(asdict(set_up.chain))
    with tempfile.TemporaryDirectory(prefix="ppll-") as folder:
        processes = [
            net.start(
                rank,
                *(sys.executable, "-m", "benchmarks.scale.rank", f"--folder={folder}"),
                *(f"--address={net.address(rank)}", f"--rank={rank}", f"--chain={chain}"),
            )
            for rank in range(net.num_hosts)
        ]
        printed = outputs(processes, timeout_s=300)
    if any(process.returncode for process in processes):
        raise RuntimeError("\n".join(printed))
    return [json.loads(text.splitlines()[-1]) for text in printed]


def simulated(set_up: SetUp, own_s: float, latency_s: float) -> float:
    """The same in the simulation."""
    link = SHARED
    if set_up.megabits is not None:
        link = Link(GOODPUT * set_up.megabits * 1e6 / 8, latency_s, buffers=True)
    stages = [
        StageTimes(set_up.forward_s + own_s, set_up.learn_s, set_up.payload_mib * MIB / replicas)
        for replicas in set_up.replicas
    ]
    per_host = len(stages) if set_up.megabits is None else 1
    cluster = Cluster(per_host, link, link, set_up.replicas)
    gradients = [set_up.parameters_mib * MIB] * len(stages)
    return simulate_cluster(cluster, stages, gradients, 500).seconds_per_batch


def main() -> None:
    parser = new_parser(__doc__, repeats=3)
    parser.add_argument("--only", default="", help="Set-ups whose name has this in it.")
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
    for set_up in (each for each in SET_UPS if args.only in each.name):
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
