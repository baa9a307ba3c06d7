"""What does a checkpoint every 50 steps cost?

Method: a residual network is trained for a fixed number of steps through ``ppll.Trainer``, each
process with one thread, without checkpoints on the way and with one every 50 steps, in alternation.
The ratio of samples a second is taken within each such pair. Start-up and the final test are not
counted; both runs write the checkpoint at the end.

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
from pathlib import Path
from typing import Any

from benchmarks.report import Spread, new_parser, write_report

from ppll import Trainer, fork_server
from ppll.recipe_files import load_recipe

CASES: dict[str, dict[str, Any]] = {
    "resnet32": {
        "data.shape": [3, 32, 32],
        "data.batch_size": 32,
        "model.depth": 32,
        "split.blocks": 2,
        "runtime.stages": 2,
        "train.max_steps": 200,
    },
    "small": {
        "data.shape": [1, 8, 8],
        "data.batch_size": 64,
        "model.depth": 20,
        "split.blocks": 4,
        "runtime.stages": 4,
        "train.max_steps": 1500,
    },
}


def main() -> None:
    options = _parse()
    fork_server.warm_up()
    rows = []
    with tempfile.TemporaryDirectory(prefix="ppll-checkpoints-") as name:
        for case in options.cases:
            ratios = []
            for repeat in range(options.repeats):
                folder = Path(name) / f"{case}-{repeat}"
                pair = [_rate(case, folder / str(every), every) for every in (None, options.every)]
                ratios.append(pair[1] / pair[0])
                rows.append({"case": case, "without": pair[0], "with": pair[1]})
            loss = Spread.of([100 * (1 - ratio) for ratio in ratios])
            print(f"{case}: a checkpoint every {options.every} steps costs {loss.text(2, ' %')}")
            rows.append({"case": case, "loss_percent": loss.to_dict()})
    write_report(options, rows)


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__, repeats=5)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    return parser.parse_args()


def _rate(case: str, out: Path, every: int | None) -> float:
    settings = {
        **CASES[case],
        "data.name": "synthetic",
        "data.num_train": 640,
        "data.num_test": 64,
        "train.epochs": 10_000,  # more than max_steps allows
        "train.evaluate_every": 0,
    }
    if every is not None:
        settings["checkpoint.every_steps"] = every
    pairs = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return Trainer(load_recipe("digits-resnet", pairs), out=out).fit().samples_per_second


if __name__ == "__main__":
    main()
