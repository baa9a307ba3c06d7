"""What does each part of a method bring? On validation images; the test set is not looked at.

Trains ``cifar10-resnet32-quick`` by several methods on 10,000 images and asks every exit about
10,000 others, cut from the training set, too.

Run from the repository's root::

    python -m benchmarks.ablation.run --parallel 2 --json benchmarks/ablation/result.json
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from benchmarks.report import new_parser, write_report

import ppll
from ppll.data import load_dataset, prepare
from ppll.trained.exits import measure_exits

RECIPE = "cifar10-resnet32-quick"
METHODS = (
    "backprop",
    "backprop:context=E",
    "backprop:context=E,exits=strided-separable",
    "greedy",
    "dgl:auxiliary=strided-separable",
    "contsup:auxiliary=strided-separable",
    "auglocal",
    "contsup:auxiliary=auglocal",
)


def train(method: str, seed: int, settings: list[str]) -> tuple[list[float | None], float]:
    """Validation accuracy of every exit, and of all averaged."""
    name, _, options = method.partition(":")
    own = [f"method.name={name}", *(f"method.{o}" for o in options.split(",") if o)]
    limits = ["data.train_limit=20000", "data.validation=10000", f"train.seed={seed}"]
    recipe = ppll.load_recipe(RECIPE, [*settings, *own, *limits])
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        ppll.Trainer(recipe, out=run).fit()
        network = ppll.load(run)
    data = prepare(load_dataset(recipe.data), recipe.data)
    train, chosen = data.dataset.train, torch.as_tensor(data.validation_samples)
    report = measure_exits(network, train.inputs[chosen], train.targets[chosen])
    return list(report.exit_accuracy), report.average_accuracy


def row(method: str, runs: list[tuple[list[float | None], float]]) -> dict[str, Any]:
    """What a method reached over all seeds."""
    exits, averaged = zip(*runs, strict=True)
    final = [values[-1] for values in exits]
    return {
        "method": method,
        "final": _spread(final),
        "averaged": _spread(averaged),
        "exit_accuracy": list(exits),
        "average_accuracy": list(averaged),
    }


def _spread(values: Any) -> dict[str, float]:
    return {
        "mean": statistics.mean(values),
        "spread": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def main() -> None:
    """Train all, print a line a method, write the JSON."""
    parser = new_parser(__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--parallel", type=int, default=1)
    args = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    rows = []
    with concurrent.futures.ProcessPoolExecutor(args.parallel, mp_context=spawn) as pool:
        runs = {
            method: [pool.submit(train, method, seed, args.settings) for seed in range(args.seeds)]
            for method in args.methods
        }
        for method, futures in runs.items():
            rows.append(row(method, [future.result() for future in futures]))
            final, averaged = rows[-1]["final"], rows[-1]["averaged"]
            print(
                f"{method:44}  {final['mean']:.2%} +- {final['spread']:.2%}  "
                f"averaged {averaged['mean']:.2%} +- {averaged['spread']:.2%}",
                flush=True,
            )
    write_report(args, rows)


if __name__ == "__main__":
    main()
