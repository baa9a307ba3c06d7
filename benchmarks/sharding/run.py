"""What does a replica need when a stage's replicas share its parameters?

Method: one stage with all four blocks of a ViT (AdamW) and one, two or four replicas, with
``runtime.sharding`` and without; pictures of four patches, so that parameters, gradients and
optimizer state are most of what is in memory. Every rank's private memory is looked at about ten
times a second, by the kernel's count (Linux only: it reads /proc), from the second batch until
the last is learned; checkpoints and the start are not in it. The same of a model with next to no
parameters is taken off: that is Python, torch and the data.

Reading: ``own_mib`` is the largest replica's. Without shares it is four times the parameters
(themselves, gradients, two averages of AdamW), and what adding up holds for a moment; with shares
a replica's part of that, and one layer whole. ``weights_sha256`` has to be the same in both rows
of as many replicas. Rates are of processes that share two cores: what counts is the ratio.

Run from the repository's root: ``python -m benchmarks.sharding.run --json FILE``.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.report import Spread, new_parser, write_report

import ppll
from ppll.status import Status

MIB = 2**20
_LEAST_WIDTH = 8


def main() -> None:
    """Measure every number of replicas with shares and without."""
    parser = new_parser(__doc__, repeats=2)
    parser.add_argument("--width", type=int, default=512, help="of the model")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    least = {sharding: _run(options, 2, sharding, _LEAST_WIDTH) for sharding in ("none", "fsdp")}
    rows = []
    for replicas in options.replicas:
        for sharding in ("none", "fsdp") if replicas > 1 else ("none",):
            made = (replicas, sharding)
            runs = [_run(options, *made, options.width) for _ in range(options.repeats)]
            rows.append(_row(*made, runs, least[sharding]["private_bytes"]))
            print(_told(rows[-1]), flush=True)
    write_report(options, rows)


def _run(options: Any, replicas: int, sharding: str, width: int) -> dict[str, Any]:
    """One run, started from a fresh process."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, fresh) as pool:
        return pool.submit(_trained, width, options.steps, replicas, sharding).result()


def _trained(width: int, steps: int, replicas: int, sharding: str) -> dict[str, Any]:
    watch = _Watch(steps)
    with tempfile.TemporaryDirectory(prefix="ppll-") as folder:
        recipe = _recipe(width, steps, replicas, sharding)
        result = ppll.Trainer(recipe, out=Path(folder) / "run", watch=watch).fit()
        return {
            "private_bytes": watch.most,
            "samples_per_second": result.samples_per_second,
            "weights_sha256": result.weights_sha256,
            "checkpoint_bytes": _weights_bytes(Path(folder) / "run", steps),
        }


def _recipe(width: int, steps: int, replicas: int, sharding: str) -> dict[str, Any]:
    return {
        "data": {
            "name": "synthetic",
            "shape": [1, 8, 8],
            "num_train": 8 * steps,
            "num_test": 8,
            "batch_size": 8,
        },
        "model": {"name": "vit", "width": width, "depth": 8, "heads": 4, "patch_size": 4},
        "split": {"blocks": 4},
        "method": {"name": "dgl", "auxiliary": "linear"},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "train": {"epochs": 1, "replicas": replicas, "evaluate_every": 0},
        "runtime": {"stages": 1, "sharding": sharding, "devices": "cpu"},
        "track": {"trace_steps": 0},
    }


def _weights_bytes(run: Path, steps: int) -> int:
    files = (run / "checkpoints" / f"step-{steps:08d}").glob("block-??.safetensors")
    return sum(file.stat().st_size for file in files)


class _Watch:
    """Looks at every rank's private memory while it trains."""

    def __init__(self, last_step: int) -> None:
        self.most = 0
        self._last_step = last_step

    def __call__(self, statuses: Sequence[Status]) -> None:
        if all(2 <= status.step < self._last_step for status in statuses):
            self.most = max(self.most, *map(_private_bytes, _ranks(len(statuses))))


def _ranks(num: int) -> list[int]:
    """Processes below this one, the ranks among them; a single rank is this one."""
    found = [os.getpid()]
    for pid in found:
        children = Path(f"/proc/{pid}/task/{pid}/children")
        found += map(int, children.read_text().split()) if children.exists() else []
    return found[1:] if num > 1 else found[:1]


def _private_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def _row(
    replicas: int, sharding: str, runs: Sequence[dict[str, Any]], least: int
) -> dict[str, Any]:
    (digest,) = {run["weights_sha256"] for run in runs}
    return {
        "replicas": replicas,
        "sharding": sharding,
        "parameters_mib": runs[0]["checkpoint_bytes"] / MIB,
        "own_mib": Spread.of([(run["private_bytes"] - least) / MIB for run in runs]).to_dict(),
        "samples_per_second": Spread.of([run["samples_per_second"] for run in runs]).to_dict(),
        "weights_sha256": digest,
    }


def _told(row: dict[str, Any]) -> str:
    own, rate = row["own_mib"]["median"], row["samples_per_second"]["median"]
    return (
        f"{row['replicas']} replica(s), sharding {row['sharding']}: {own:.0f} MiB of "
        f"{row['parameters_mib']:.0f} MiB of parameters, {rate:.2f} samples/s, "
        f"{row['weights_sha256'][:12]}"
    )


if __name__ == "__main__":
    main()
