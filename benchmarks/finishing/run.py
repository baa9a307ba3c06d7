"""What is a last stretch end to end worth, behind local learning?

Trains ``cifar10-resnet32-quick`` locally for all but a share of its steps, and goes on with
``cifar10-resnet32-quick-finish`` (end to end, a learning rate of its own) for that share. Each part
has a cosine of its own, so that both end with a small learning rate. With a share of 0 all steps
are local, with 1 all are end to end at the first recipe's learning rate. The number of steps is the
same for all; the seconds are those of training both parts on one stage, evaluations left out.

The finishing learning rate of 0.05 was chosen on validation images (0.02, 0.05, 0.1, 0.2: 63.8,
64.3, 64.2, 63.4 %, behind eight local epochs that had reached 62.4 %; two epochs, one seed).

Run from the repository's root::

    python -m benchmarks.finishing.run --parallel 2 --json benchmarks/finishing/result.json
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report import new_parser, write_report

import ppll
from ppll.sections import MethodConfig

LOCAL, FINISH = "cifar10-resnet32-quick", "cifar10-resnet32-quick-finish"


def train(method: str, seed: int, share: float, num_steps: int) -> tuple[float, float]:
    """Test accuracy of the final output, and seconds of training."""
    last = round(share * num_steps)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "local"
        seconds = 0.0
        if last < num_steps:
            local = _fit(LOCAL, method, run, seed, num_steps - last)
            seconds += local.train_seconds
            if last == 0:
                return local.test_accuracy or 0.0, seconds
            weights = f"model.weights={run}"
            end = _fit(FINISH, "backprop", Path(folder) / "end", seed, last, weights)
        else:
            end = _fit(LOCAL, "backprop", run, seed, num_steps)
        return end.test_accuracy or 0.0, seconds + end.train_seconds


def _fit(
    recipe: str, method: str, out: Path, seed: int, num_steps: int, *settings: str
) -> ppll.Result:
    # The steps bound the run, not the epochs.
    bounds = (f"train.seed={seed}", "train.epochs=10", f"train.max_steps={num_steps}")
    loaded = ppll.load_recipe(recipe, [*settings, *bounds])
    # The method alone, without the options that the recipe gives its own.
    loaded = loaded.model_copy(update={"method": MethodConfig(name=method)})
    return ppll.Trainer(loaded, out=out).fit()


def row(share: float, runs: list[tuple[float, float]]) -> dict[str, Any]:
    """What a share reached over all seeds."""
    accuracy, seconds = zip(*runs, strict=True)
    return {
        "share_end_to_end": share,
        "mean": statistics.mean(accuracy),
        "spread": statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0,
        "test_accuracy": list(accuracy),
        "train_seconds": list(seconds),
    }


def main() -> None:
    """Train all, print a line a share, write the JSON."""
    parser = new_parser(__doc__)
    parser.add_argument("--method", default="auglocal")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2, 1.0])
    parser.add_argument("--steps", type=int, default=1570)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--parallel", type=int, default=1)
    args = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    rows = []
    with concurrent.futures.ProcessPoolExecutor(args.parallel, mp_context=spawn) as pool:
        runs = {
            share: [
                pool.submit(train, args.method, seed, share, args.steps)
                for seed in range(args.seeds)
            ]
            for share in args.shares
        }
        for share, futures in runs.items():
            rows.append(row(share, [future.result() for future in futures]))
            mean, spread = rows[-1]["mean"], rows[-1]["spread"]
            seconds = statistics.mean(rows[-1]["train_seconds"])
            print(f"{share:5.0%}  {mean:.2%} +- {spread:.2%}  {seconds:.0f} s", flush=True)
    write_report(args, rows)


if __name__ == "__main__":
    main()
