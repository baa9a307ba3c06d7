"""How near do four local blocks come to backprop on digits?

Trains the shipped recipe ``digits-resnet`` over several seeds with ``backprop``, ``greedy`` and
``dgl``, everything else equal, and prints mean and spread of the test accuracy of the final output.
The recipe was not tuned on the test set for any of them. The times are those of one stage on one
thread and only tell the order of magnitude.

Run from the repository's root::

    python -m benchmarks.accuracy.run --json benchmarks/accuracy/result.json
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report import new_parser, write_report

import ppll


def train(recipe: str, method: str, seed: int, stages: int, out: Path) -> ppll.Result:
    """One run from beginning to end."""
    settings = [
        f"method.name={method}",
        f"train.seed={seed}",
        "train.evaluate_every=0",
        f"runtime.stages={1 if method == 'backprop' else stages}",
    ]
    return ppll.Trainer(ppll.load_recipe(recipe, settings), out=out).fit()


def row(recipe: str, method: str, results: list[ppll.Result]) -> dict[str, Any]:
    """What a method reached over all seeds."""
    accuracy = [result.test_accuracy or 0.0 for result in results]
    return {
        "recipe": recipe,
        "method": method,
        "mean": statistics.mean(accuracy),
        "spread": statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0,
        "test_accuracy": accuracy,
        "exit_accuracy": [list(result.exit_accuracy) for result in results],
        "train_seconds": [result.train_seconds for result in results],
        "num_stages": results[0].num_stages,
    }


def main() -> None:
    """Train all, print a line a method, write the JSON."""
    parser = new_parser(__doc__)
    parser.add_argument("--recipe", default="digits-resnet")
    parser.add_argument("--methods", nargs="+", default=["backprop", "greedy", "dgl"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--stages", type=int, default=1)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for method in args.methods:
            outs = [Path(folder) / f"{method}-{seed}" for seed in range(args.seeds)]
            results = [
                train(args.recipe, method, seed, args.stages, out) for seed, out in enumerate(outs)
            ]
            rows.append(row(args.recipe, method, results))
            seconds = statistics.median(rows[-1]["train_seconds"])
            print(
                f"{method:10} {rows[-1]['mean']:.2%} +- {rows[-1]['spread']:.2%} "
                f"({args.seeds} seeds, {seconds:.0f} s of training each)",
                flush=True,
            )
    write_report(args, rows)


if __name__ == "__main__":
    main()
