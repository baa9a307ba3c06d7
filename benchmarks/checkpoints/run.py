"""What does a checkpoint every 50 steps cost?

Method: a residual network is trained through ``ppll.Trainer``, each process with one thread, with a
checkpoint every 100 steps. So of every two stretches of 50 steps, one after the other, the first
has a checkpoint to copy and to write and the second has none. Their times are taken at the last
stage, from learning step to learning step; the ratio within each pair is what a checkpoint every 50
steps costs, and what else the machine does in these seconds meets both.

Two cases: ResNet-32 on 3x32x32 images on two stages, and a small network on 1x8x8 images on four,
whose steps are so short that a checkpoint is large beside them.

Reading: 0 % would be free. Blocks are copied when the mark passes and written by a thread, so what
is left is the copy, the thread's share of the processor, and waiting for a checkpoint that is not
written when the next is due.

Run from the repository's root: ``python -m benchmarks.checkpoints.run``
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.report import Spread, new_parser, write_report

from ppll import Trainer, fork_server
from ppll.recipe_files import load_recipe
from ppll.status import Activity, Status

STRETCH = 50
CASES: dict[str, dict[str, Any]] = {
    "resnet32": {
        "data.shape": [3, 32, 32],
        "data.batch_size": 32,
        "model.depth": 32,
        "split.blocks": 2,
        "runtime.stages": 2,
    },
    "small": {
        "data.shape": [1, 8, 8],
        "data.batch_size": 64,
        "model.depth": 20,
        "split.blocks": 4,
        "runtime.stages": 4,
    },
}


class Marks:
    """When the last stage began to learn from which step, as often as it is seen."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def __call__(self, statuses: Sequence[Status]) -> None:
        """Take note of what the launcher read."""
        if statuses[-1].activity is Activity.LEARN:
            self.seen.setdefault(statuses[-1].step, statuses[-1].since)

    def at(self, step: int) -> float:
        """When it came to a step, between the two nearest that were seen."""
        steps = sorted(self.seen)
        return float(np.interp(step, steps, [self.seen[s] for s in steps]))


def main() -> None:
    options = _parse()
    fork_server.warm_up()
    rows = []
    with tempfile.TemporaryDirectory(prefix="ppll-checkpoints-") as name:
        for case in options.cases:
            costs = _costs(case, Path(name) / case, options.pairs)
            middle = Spread.of(costs)
            quarters = np.percentile(costs, [25, 75])
            print(
                f"{case}: a checkpoint every {STRETCH} steps costs {middle.median:.2f} % "
                f"(quartiles {quarters[0]:.2f} to {quarters[1]:.2f}, {len(costs)} pairs)"
            )
            rows.append({"case": case, "cost_percent": middle.to_dict()})
    write_report(options, rows)


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    return parser.parse_args()


def _costs(case: str, out: Path, pairs: int) -> list[float]:
    """Percent by which a stretch with a checkpoint takes longer than the one after it."""
    settings = {
        **CASES[case],
        "data.name": "synthetic",
        "data.num_train": 640,
        "data.num_test": 64,
        "train.epochs": 100_000,  # more than max_steps allows
        "train.max_steps": 2 * STRETCH * (pairs + 2),
        "train.evaluate_every": 0,
        "checkpoint.every_steps": 2 * STRETCH,
    }
    marks = Marks()
    values = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    Trainer(load_recipe("digits-resnet", values), out=out, watch=marks).fit()
    costs = []
    for pair in range(1, pairs + 1):
        start = 2 * STRETCH * pair  # the mark of the checkpoint passes after this step
        times = [marks.at(start + STRETCH * part) for part in (0, 1, 2)]
        costs.append(100 * ((times[1] - times[0]) / (times[2] - times[1]) - 1))
    return costs


if __name__ == "__main__":
    main()
