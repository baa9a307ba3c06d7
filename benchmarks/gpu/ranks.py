"""What do several ranks on one device cost, and are their bits those of one?

Method: ``dgl`` in four blocks is trained through ``ppll.Trainer``, by one rank and by four that
share the device; features pass from rank to rank in the GPU's memory. Everything is in it:
loader, start of the pipeline, metrics. ``weights_sha256`` must be equal, or the exit code is 1.

Reading: this is the price of several processes on one device, not what several would give.

Run from the repository's root: ``python -m benchmarks.gpu.ranks --device cuda``
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.work import NETWORKS, TINY, make_recipe
from benchmarks.report import new_parser, write_report

import ppll


def main() -> None:
    options = _parse()
    rows = []
    for network in options.networks:
        pair = [_run(options, network, stages) for stages in (1, 4)]
        rows += pair
        same = pair[0]["weights_sha256"] == pair[1]["weights_sha256"]
        one, four = (f"{row['samples_per_second']:,.0f}" for row in pair)
        print(f"{network}: {one} samples/s by one rank, {four} by four; same bits: {same}")
        write_report(options, rows)
    sys.exit(len({(row["network"], row["weights_sha256"]) for row in rows}) > len(rows) // 2)


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="try the script on small networks")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(TINY))
    return parser.parse_args()


def _run(options: argparse.Namespace, network: str, stages: int) -> dict[str, Any]:
    recipe = make_recipe(
        network,
        options.batch_size,
        "dgl",
        options.device,
        tiny=options.tiny,
        epochs=options.steps,
        max_steps=options.steps,
        evaluate_every=0,
    ).with_settings([f"runtime.stages={stages}", "schedule.name=constant"])
    with tempfile.TemporaryDirectory() as folder:
        result = ppll.Trainer(recipe, out=Path(folder) / "run").fit()
    return {
        "network": network,
        "batch_size": options.batch_size,
        "stages": stages,
        "samples_per_second": result.samples_per_second,
        "busy_fraction": result.busy_fraction,
        "peak_memory_bytes": result.peak_memory_bytes,
        "weights_sha256": result.weights_sha256,
    }


if __name__ == "__main__":
    main()
