"""Does anything wait needlessly?

Method: every stage has one block that only sleeps (10 ms in its forward, 20 ms in its learning
step) and never computes, so two cores are enough for any number of stages and a perfect pipeline
takes exactly as long a batch as one block alone. Processes, prefetching, shared-memory channels
with 4 MiB messages and the worker are the real ones. The block alone is the same code with one
stage. A sleep overshoots, in the block alone just as in the pipeline, so the ratio is to the block
alone as it was measured in the same repeat, not to 30 ms.

Reading: seconds a batch are taken where the last stage ends its learning steps, without the first
batches, which fill the pipeline. A ratio of 1 means that nothing waits; targets are at most 1.03
with four stages and 1.05 with eight. What is above 1 is copying, headers, credits and scheduling.

Run from the repository's root: ``python -m benchmarks.waiting.run``
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.report import Spread, new_parser, write_report

from ppll.bench.chain import Chain, run_chain
from ppll.bench.rank_report import RankReport
from ppll.bench.sleeping_block import BlockTimes

TARGETS = {4: 1.03, 8: 1.05}


def main() -> None:
    options = _parse()
    counts = [1, *options.stages]
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    busy: dict[int, list[list[float]]] = {count: [] for count in counts}
    activity: dict[int, list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        for count in counts:
            reports = run_chain(_chain(options, count))
            seconds[count].append(_batch_s(reports, options.drop))
            busy[count].append([report.busy_fraction for report in reports])
            activity[count] = [report.activity_s for report in reports]
    alone = seconds[1]
    print(f"one block alone: {Spread.of([1e3 * s for s in alone]).text(3, ' ms')} a batch")
    rows: list[dict[str, Any]] = []
    for count in counts:
        ratio = Spread.of([s / a for s, a in zip(seconds[count], alone, strict=True)])
        rows.append(
            {
                "stages": count,
                "seconds_per_batch": Spread.of(seconds[count]).to_dict(),
                "ratio_to_one_block": ratio.to_dict(),
                "target": TARGETS.get(count),
                "busy_fraction": busy[count],
                "activity_s_of_last_repeat": activity[count],
            }
        )
        if count > 1:
            print(_line(count, Spread.of([1e3 * s for s in seconds[count]]), ratio))
            sending = [1e3 * spent["send"] / options.batches for spent in activity[count][:-1]]
            print(f"    of it copying and announcing: {max(sending):.3f} ms at the slowest stage")
    write_report(options, rows)


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__, repeats=3)
    parser.add_argument("--stages", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--forward-ms", type=float, default=10.0)
    parser.add_argument("--learn-ms", type=float, default=20.0)
    parser.add_argument("--payload-mib", type=float, default=4.0)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--drop", type=int, default=30, help="first batches that do not count")
    parser.add_argument("--capacity", type=int, default=4)
    options = parser.parse_args()
    if not 1 <= options.drop < options.batches:
        parser.error("--drop must be at least 1 and below --batches")
    return options


def _chain(options: argparse.Namespace, num_stages: int) -> Chain:
    payload_bytes = int(options.payload_mib * 2**20)
    block = BlockTimes(options.forward_ms / 1e3, options.learn_ms / 1e3, payload_bytes)
    return Chain.even(
        num_stages, block, options.batches, capacity=options.capacity, keeps_times=True
    )


def _batch_s(reports: list[RankReport], drop: int) -> float:
    """Seconds a batch at the last stage, in steady state."""
    times = reports[-1].times_s
    return (times[-1] - times[drop - 1]) / (len(times) - drop)


def _line(count: int, batch_ms: Spread, ratio: Spread) -> str:
    target = TARGETS.get(count)
    verdict = ""
    if target is not None:
        verdict = f", target {target}: {'reached' if ratio.median <= target else 'MISSED'}"
    return f"{count} stages: {batch_ms.text(3, ' ms')} a batch, ratio {ratio.text(4)}{verdict}"


if __name__ == "__main__":
    main()
