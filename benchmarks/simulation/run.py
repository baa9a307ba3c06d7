"""Does the simulation say what emulated devices take?

Method: ten pipelines, even and uneven, of two to eight stages, with channels of one to eight slots
and messages of 64 KiB to 8 MiB, are simulated (``ppll.simulation.simulate``) and run on devices
that sleep (``ppll.bench.chain``): processes, channels and the worker are the real ones. The
simulation is told the times of the blocks and the bandwidth and latency of a channel; and what a
message takes one stage alone beyond its block's times, which is measured first, as ``ppll plan``
measures it.

Reading: the deviation is measured to simulated seconds a batch in steady state, less one. The
target is at most 5 % on every set-up.

Run from the repository's root: ``python -m benchmarks.simulation.run``
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.report import new_parser, write_report

from ppll.bench.chain import Chain, run_chain
from ppll.bench.sleeping_block import BlockTimes
from ppll.simulation.simulate import Link, Pipeline, StageTimes, simulate

LINK = Link(bandwidth_bytes_s=8e9, latency_s=60e-6)
"""What ``ppll bench channels`` says of a message of some MiB, roughly."""
MIB = 2**20


@dataclass(frozen=True)
class SetUp:
    """A pipeline: forward and learn in ms of each block of each stage."""

    name: str
    stages: tuple[tuple[tuple[float, float], ...], ...]
    payload_bytes: int = 4 * MIB
    capacity: int = 4


def one(*blocks: tuple[float, float]) -> tuple[tuple[tuple[float, float], ...], ...]:
    """A stage a block."""
    return tuple((block,) for block in blocks)


SET_UPS = (
    SetUp("two even stages", one((5, 10), (5, 10))),
    SetUp("four even stages", one(*[(10, 20)] * 4)),
    SetUp("eight even stages", one(*[(10, 20)] * 8)),
    SetUp("four even stages, one slot", one(*[(10, 20)] * 4), capacity=1),
    SetUp("forward-heavy, one slot", one(*[(20, 5)] * 3), capacity=1),
    SetUp("slowest first", one((12, 24), (6, 12), (6, 12), (3, 9))),
    SetUp("slowest in the middle", one((4, 8), (10, 20), (5, 10), (5, 10)), capacity=2),
    SetUp("slowest last", one((4, 8), (5, 10), (6, 12), (15, 30)), capacity=8),
    SetUp("two blocks a stage", (((4, 8), (5, 9)), ((6, 8), (3, 6)), ((5, 10), (4, 7)))),
    SetUp("short steps, small messages", one(*[(1.5, 3)] * 4), payload_bytes=MIB // 16),
)

ALONE = SetUp("one stage", one((1.5, 3)))


def main() -> None:
    options = new_parser(__doc__).parse_args()
    rows = []
    own_s = max(0.0, _measured(ALONE) - sum(ALONE.stages[0][0]) / 1e3)
    print(f"a message takes a stage {1e6 * own_s:.0f} us beyond its blocks' times")
    for set_up in SET_UPS:
        expected, measured = _simulated(set_up, own_s), _measured(set_up)
        deviation = measured / expected - 1
        rows.append(
            {"set_up": set_up.name, "simulated_s": expected, "measured_s": measured}
            | {"deviation": deviation}
        )
        print(
            f"{set_up.name:<30} simulated {1e3 * expected:7.2f} ms, measured "
            f"{1e3 * measured:7.2f} ms, {100 * deviation:+.1f} %"
        )
    worst = max(abs(row["deviation"]) for row in rows)
    print(f"largest deviation {100 * worst:.1f} %, target 5 %")
    write_report(options, rows)


def _simulated(set_up: SetUp, own_s: float) -> float:
    stages = []
    for blocks in set_up.stages:
        total = sum(forward + learn for forward, learn in blocks) / 1e3
        after = blocks[-1][1] / 1e3
        stages.append(StageTimes(total - after + own_s, after, set_up.payload_bytes))
    links = (LINK,) * (len(stages) - 1)
    return simulate(Pipeline(tuple(stages), links, set_up.capacity), 1000).seconds_per_batch


def _measured(set_up: SetUp) -> float:
    stages = tuple(
        tuple(BlockTimes(f / 1e3, learn / 1e3, set_up.payload_bytes) for f, learn in blocks)
        for blocks in set_up.stages
    )
    fill = set_up.capacity * len(stages) + 5
    times = run_chain(Chain(stages, fill + 100, set_up.capacity, keeps_times=True))[-1].times_s
    return (times[-1] - times[fill - 1]) / (len(times) - fill)


if __name__ == "__main__":
    main()
