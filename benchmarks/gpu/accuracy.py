"""How long until a network on one GPU gets 92 % and 94 % of CIFAR-10's test images right?

Method: the recipe ``cifar10-wide-gpu``, by local learning and by backprop, which is the same
network with the same data, optimizer and schedule. The clock starts when ``fit`` is called and runs
through the start, the recording of CUDA graphs and an evaluation on the test set after every epoch;
the data set has been decoded before. A callback notes when an evaluation is there, to half a
second. Seeds differ from that on which blocks, method and epochs of the recipe were chosen.

CIFAR-10 is expected in ``--root`` (or PPLL_DATA). Run from the repository's root:
``python -m benchmarks.gpu.accuracy --root DATA``
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.report import new_parser, write_report

import ppll
from ppll.recipe_files import load_recipe

SYSTEMS: dict[str, list[str]] = {
    "local": [],
    "backprop": ["method.name=backprop", "runtime.concurrent_blocks=false"],
}
GOALS = (0.92, 0.94)


def main() -> None:
    options = _parse()
    rows: list[dict[str, Any]] = []
    for seed, system in itertools.product(options.seeds, options.systems):
        rows.append(_run(options, system, seed))
        print(_text(rows[-1]), flush=True)
        write_report(options, rows)


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--recipe", default="cifar10-wide-gpu")
    parser.add_argument("--root", help="folder of CIFAR-10")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--set", dest="settings", nargs="*", default=[], help="SECTION.KEY=VALUE")
    return parser.parse_args()


def _run(options: argparse.Namespace, system: str, seed: int) -> dict[str, Any]:
    root = [f"data.root={options.root}"] if options.root else []
    recipe = load_recipe(options.recipe).with_settings(
        [*root, *SYSTEMS[system], f"train.seed={seed}", *options.settings]
    )
    seen: list[tuple[float, float]] = []
    last = 0 if system == "backprop" else recipe.split.blocks - 1

    def note(row: Any) -> None:
        if row["kind"] == "test" and row["block"] == last:
            seen.append((time.monotonic(), row["accuracy"]))

    with tempfile.TemporaryDirectory() as folder:
        trainer = ppll.Trainer(recipe, out=Path(folder) / "run", callbacks=[note])
        start = time.monotonic()
        result = trainer.fit()
    curve = [(at - start, accuracy) for at, accuracy in seen]
    return {
        "system": system,
        "seed": recipe.train.seed,
        "test_accuracy": result.test_accuracy,
        "exit_accuracy": result.exit_accuracy,
        "samples_per_second": result.samples_per_second,
        "train_seconds": result.train_seconds,
        "peak_memory_bytes": result.peak_memory_bytes,
        "seconds_to": {f"{goal:.0%}": next(_reached(curve, goal), None) for goal in GOALS},
        "curve": curve,
    }


def _reached(curve: list[tuple[float, float]], goal: float) -> Iterator[float]:
    """When a share of the images was got right, from then on."""
    return (seconds for seconds, accuracy in curve if accuracy >= goal)


def _text(row: dict[str, Any]) -> str:
    times = ", ".join(
        f"{goal} after {seconds:.1f} s" if seconds else f"{goal} not reached"
        for goal, seconds in row["seconds_to"].items()
    )
    return (
        f"{row['system']}, seed {row['seed']}: {row['test_accuracy']:.2%} in "
        f"{row['train_seconds']:.1f} s ({row['samples_per_second']:,.0f} samples/s); {times}"
    )


if __name__ == "__main__":
    main()
