"""Is memory steady over 20,000 messages?

Method: four stages, each a process with one block that computes nothing, pass messages of 64 KiB
as fast as they can; processes, prefetching, shared-memory channels and the worker are the real
ones. Every rank reads its resident memory and counts its descriptors after 1,000 messages, when
all slots have been touched, and after the last.

Reading: growth of a few dozen KiB is the allocator's; a leak of one small object a message would
be megabytes, of one descriptor a message thousands. ``private`` is the heap alone, without the
slots that a process maps. Messages a second are the last stage's between the two readings: the
whole cost of a hop, three of them at work at once.

Run from the repository's root: ``python -m benchmarks.memory.run`` (Linux only: it reads /proc).
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.report import new_parser, write_report

from ppll.bench.chain import Chain, run_chain
from ppll.bench.rank_report import RankReport
from ppll.bench.sleeping_block import BlockTimes


def main() -> None:
    options = _parse()
    reports = run_chain(
        Chain.even(
            options.stages,
            BlockTimes(payload_bytes=int(options.payload_kib * 1024)),
            options.messages,
            capacity=options.capacity,
            footprint_steps=(options.first, options.messages),
        )
    )
    rows = [_row(rank, report) for rank, report in enumerate(reports)]
    for row in rows:
        print(
            f"rank {row['rank']}: resident {row['resident_kib'][0]} -> {row['resident_kib'][1]} KiB"
            f" (growth {row['growth_kib']} KiB, private {row['private_growth_kib']} KiB),"
            f" descriptors {row['descriptors'][0]} -> {row['descriptors'][1]}"
        )
    print(f"{rows[-1]['messages_per_second']:.0f} messages a second")
    write_report(options, rows)


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=1_000, help="first reading")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--payload-kib", type=float, default=64.0)
    parser.add_argument("--capacity", type=int, default=4)
    options = parser.parse_args()
    if not 1 <= options.first < options.messages:
        parser.error("--first must be at least 1 and below --messages")
    return options


def _row(rank: int, report: RankReport) -> dict[str, Any]:
    first, last = report.footprints
    return {
        "rank": rank,
        "after_messages": [first.step, last.step],
        "resident_kib": [first.resident_kib, last.resident_kib],
        "growth_kib": last.resident_kib - first.resident_kib,
        "private_growth_kib": last.private_kib - first.private_kib,
        "descriptors": [first.num_descriptors, last.num_descriptors],
        "messages_per_second": (last.step - first.step) / (last.time_s - first.time_s),
    }


if __name__ == "__main__":
    main()
