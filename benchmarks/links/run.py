"""What does a slow link cost? PPLL, torch's pipelining and data parallelism over shaped links.

Hosts are network namespaces of this machine, joined by a switch; ``tc ... tbf`` shapes every link.
Each host has one emulated device: it sleeps where it would compute, everything else is real:
processes, PPLL's channel between hosts, torch's schedules and DDP, all on gloo. All systems compute
the same network on the same batches; PPLL's auxiliary networks take 3 % more. In every repeat all
systems run on all links in turn; a figure is the median of seconds a batch in steady state.

Linux, as root. Run from the repository's root::

    python -m benchmarks.links.run --json benchmarks/links/result.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.report import new_parser, write_report
from tests.namespaces import Network, network, outputs, reason_for_none

LINKS = {"not shaped": None, "1 Gb/s": 1000, "100 Mb/s": 100}
SYSTEMS = {
    "ppll": {},
    "ppll, bf16": {"payload": 0.5},
    "ppll, int8": {"payload": 0.25},
    "1f1b, 4 micro-batches": {"microbatches": 4},
    "1f1b, 8 micro-batches": {"microbatches": 8},
    "ddp": {},
}
WARM_UP = 10


def measure(net: Network, name: str, args: argparse.Namespace) -> float:
    """Seconds a batch in steady state."""
    about = SYSTEMS[name]
    with tempfile.TemporaryDirectory(prefix="ppll-") as folder:
        processes = [
            net.start(
                rank,
                *(sys.executable, "-m", "benchmarks.links.rank", f"--system={name.split(',')[0]}"),
                *(f"--folder={folder}", f"--address={net.address(rank)}", f"--rank={rank}"),
                *(f"--ranks={net.num_hosts}", f"--batches={args.batches + WARM_UP}"),
                f"--microbatches={about.get('microbatches', 1)}",
                f"--payload-mib={args.payload_mib * about.get('payload', 1)}",
                *(f"--forward-s={args.forward_s}", f"--backward-s={2 * args.forward_s}"),
                f"--auxiliary-s={0.09 * args.forward_s}",
                f"--parameters-mib={args.parameters_mib}",
            )
            for rank in range(net.num_hosts)
        ]
        printed = outputs(processes, timeout_s=600)
    if any(process.returncode for process in processes):
        raise RuntimeError("\n".join(printed))
    ends = [json.loads(text.splitlines()[-1]) for text in printed]
    last = [max(times) for times in zip(*ends, strict=True)]
    return (last[-1] - last[WARM_UP - 1]) / args.batches


def rows_of(seconds: dict[tuple[str, str], list[float]], args: Any) -> list[dict[str, Any]]:
    """What every system takes on every link, and loses against the link that is not shaped."""
    rows = []
    for (link, system), values in seconds.items():
        free = seconds["not shaped", system]
        lost = [1 - a / b for a, b in zip(free, values, strict=True)]
        rows.append(
            {
                "link": link,
                "system": system,
                "ms_a_batch": 1000 * statistics.median(values),
                "lost": statistics.median(lost),
                "seconds_a_batch": values,
                "ideal_ms": 1000 * args.forward_s * (3.09 if system.startswith("ppll") else 3),
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all, print a line each, write the JSON."""
    parser = new_parser(__doc__, repeats=3)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--forward-s", type=float, default=0.02, help="of a device, a batch")
    parser.add_argument("--payload-mib", type=float, default=1.0, help="features a batch and cut")
    parser.add_argument("--parameters-mib", type=float, default=8.0, help="of the whole network")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    args = parser.parse_args(arguments)
    if (reason := reason_for_none()) is not None:
        raise SystemExit(reason)
    seconds: dict[tuple[str, str], list[float]] = {
        (link, system): [] for link in LINKS for system in args.systems
    }
    for _ in range(args.repeats):
        for link, megabits in LINKS.items():
            for system in args.systems:
                with network(args.hosts) as net:
                    if megabits is not None:
                        net.shape(megabits)
                    seconds[link, system].append(measure(net, system, args))
    rows = rows_of(seconds, args)
    for row in rows:
        print(
            f"{row['link']:12} {row['system']:24} {row['ms_a_batch']:8.1f} ms  "
            f"lost {row['lost']:6.1%}  of an ideal of {row['ideal_ms']:.1f} ms",
            flush=True,
        )
    write_report(args, rows)


if __name__ == "__main__":
    main()
