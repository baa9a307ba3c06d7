"""Why is it as fast as it is: how much of the time does a GPU compute, and how much at once?

Method: a few steps of ``benchmarks.gpu.training`` under torch's profiler, which takes down when
every kernel began and ended (CUPTI; it costs some time itself, so rates are measured there, not
here). Of every mode:

- ``idle``: share of the time in which no kernel runs: launches, and waits of kernels for kernels.
- ``overlap``: kernels that run at once while any runs, on average.
- ``kernel_us``: median length of a kernel; ``kernels``: their number a step.
- ``top``: kernels with the largest share of all kernels' time.

Run from the repository's root: ``python -m benchmarks.gpu.kernels``
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.training import MODES, WARM_UP, Feed, make_blocks, make_message
from benchmarks.gpu.work import NETWORKS, make_recipe
from benchmarks.report import new_parser, write_report

from ppll.blocks.streams import make_streams
from ppll.devices import check_devices, device_of
from ppll.ends import Ends
from ppll.numerics import set_numerics
from ppll.worker import Worker

CASES = (
    *(("backprop", "eager"), ("backprop", "graphs")),
    *(("dgl", "graphs"), ("dgl", "concurrent")),
)
Kernel = tuple[float, float, str]
"""Begin and end in microseconds, name."""


def main() -> None:
    options = _parse()
    rows = []
    for network, size in itertools.product(options.networks, options.batch_sizes):
        for method, mode in CASES:
            row = {"network": network, "batch_size": size, "method": method, "mode": mode}
            kernels = _kernels(options, network, size, method, mode)
            rows.append({**row, **summary(kernels, options.steps)})
            print(_text(rows[-1]), flush=True)
            write_report(options, rows)


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__, repeats=1)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["resnet32"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--steps", type=int, default=10)
    return parser.parse_args()


def _kernels(
    options: argparse.Namespace, network: str, size: int, method: str, mode: str
) -> list[Kernel]:
    recipe = make_recipe(network, size, method, "cuda", tiny=False).with_settings(MODES[mode])
    check_devices(recipe)
    device = device_of(recipe.runtime, 0)
    set_numerics(recipe.train, device)
    streams = make_streams(recipe, device, recipe.split.blocks)
    blocks, feed = make_blocks(recipe, device, streams), Feed(make_message(recipe, device))
    run = Worker(blocks, Ends(feed), streams=streams).run()

    def work(num_steps: int) -> None:
        feed.num_left = num_steps
        next(run)
        torch.cuda.synchronize(device)

    with streams.home():
        work(WARM_UP)
        return profiled(lambda: work(options.steps))


def profiled(work: Callable[[], None]) -> list[Kernel]:
    """Every kernel that some work runs on a GPU, in order of their beginning."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    kernels = (e for e in events if str(e.get("cat", "")).startswith(("kernel", "gpu_mem")))
    return sorted((e["ts"], e["ts"] + e["dur"], e["name"]) for e in kernels)


def summary(kernels: list[Kernel], num_steps: int) -> dict[str, Any]:
    """The figures of some steps' kernels."""
    time_of: Counter[str] = Counter()
    for start, end, name in kernels:
        time_of[name[:60]] += end - start
    total, busy = sum(time_of.values()), _union(kernels)
    length = max(end for _, end, _ in kernels) - kernels[0][0]
    return {
        "step_us": length / num_steps,
        "idle": 1 - busy / length,
        "overlap": total / busy,
        "kernels": len(kernels) / num_steps,
        "kernel_us": statistics.median(end - start for start, end, _ in kernels),
        "top": {name: share / total for name, share in time_of.most_common(8)},
    }


def _union(kernels: Iterable[Kernel]) -> float:
    """Microseconds in which any kernel runs."""
    busy, until = 0.0, 0.0
    for start, end, _ in kernels:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy


def _text(row: dict[str, Any]) -> str:
    name = f"{row['network']}, batch {row['batch_size']}, {row['method']}, {row['mode']}"
    return (
        f"{name}: {row['step_us']:,.0f} us a step, idle {row['idle']:.0%}, overlap "
        f"{row['overlap']:.2f}, {row['kernels']:.0f} kernels of {row['kernel_us']:.1f} us"
    )


if __name__ == "__main__":
    main()
