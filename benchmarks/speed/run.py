"""What do two stages on two cores give?

Method: a residual network on made-up 3x32x32 images, cut into two blocks with ``dgl``, is trained
for a fixed number of steps through ``ppll.Trainer``, each process with one thread: with both blocks
in one stage, then with one block a stage, in alternation. The ratio of samples a second is taken
within each such pair. Where the network is cut is settled first: every candidate is run once, and
the one whose two stages are most evenly busy is taken, for one stage as for two.

Samples a second are those of the last stage in steady state, without start-up, the filling of the
pipeline and the final test: from one learning step that was seen at work to another.

Reading: 2 would be perfect, but two processes on two cores also share caches, memory and the
machine's other work. The bound says how much: two independent one-stage runs at the same time,
their samples a second added up over the stretch in which both ran, relative to one alone. A
pipeline cannot beat it by much; how close it comes is what it loses. Busy shares say which stage
waits.

Run from the repository's root: ``python -m benchmarks.speed.run``
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import Spread, end_process, new_parser, write_report

from ppll.config import Recipe
from ppll.recipe_files import load_recipe

_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        marks: Step and time of every learning step that was seen at the last stage.
        result: What ``Trainer.fit`` returned.
        batch_size: Samples of a step.
    """

    marks: tuple[tuple[int, float], ...]
    result: dict[str, Any]
    batch_size: int

    def rate(self, start_s: float = float("-inf"), end_s: float = float("inf")) -> float:
        """Samples a second in steady state, from ``start_s`` to ``end_s``."""
        marks = [mark for mark in self.marks if start_s <= mark[1] <= end_s]
        if len(marks) < 2:
            raise RuntimeError("too few steps were seen: take more --steps or larger ones.")
        (first_step, first_s), (last_step, last_s) = marks[0], marks[-1]
        return (last_step - first_step) * self.batch_size / (last_s - first_s)

    @property
    def busy(self) -> tuple[float, ...]:
        """Share of the time in which each stage did not wait for the other."""
        return tuple(self.result["busy_fraction"])


def main() -> None:
    options = _parse()
    with tempfile.TemporaryDirectory(prefix="ppll-speed-") as folder:
        bench = _Bench(options, Path(folder))
        cut, candidates = bench.choose_cut()
        pairs = [bench.pair(cut) for _ in range(options.repeats)]
        bounds = [bench.bound(cut) for _ in range(options.repeats)]
    _print_pairs(cut, pairs)
    bound = Spread.of([row["ratio"] for row in bounds])
    print(f"bound, two independent runs at once to one alone: {bound.text()}")
    speedup = Spread.of([row["ratio"] for row in pairs])
    print(f"two stages reach {100 * speedup.median / bound.median:.1f} % of the bound")
    rows = [*candidates, *pairs, *bounds]
    summary = {
        "kind": "summary",
        "cut": cut,
        "speedup": speedup.to_dict(),
        "bound": bound.to_dict(),
    }
    write_report(options, [summary, *rows])


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__, repeats=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--depth", type=int, default=32, help="6n + 2")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--capacity", type=int, default=4)
    parser.add_argument(
        "--cuts", type=int, nargs="+", help="candidates: first layer of the second block"
    )
    parser.add_argument("--choose-steps", type=int, default=25, help="steps a candidate is run for")
    options = parser.parse_args()
    if options.cuts is None:
        middle = 1 + (options.depth - 2) // 4  # of stem, residual layers, head
        options.cuts = [cut for cut in range(middle - 2, middle + 2) if cut >= 1]
    return options


class _Bench:
    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._num_runs = 0

    def choose_cut(self) -> tuple[int, list[dict[str, Any]]]:
        """The candidate whose two stages are most evenly busy, and what all of them came to."""
        rows = []
        for cut in self._options.cuts:
            run = self._run(cut, stages=2, steps=self._options.choose_steps)
            gap = abs(run.busy[0] - run.busy[1])
            row = {"kind": "candidate", "cut": cut, "busy": run.busy, "rate": run.rate()}
            rows.append({**row, "gap": gap})
            print(f"cut {cut}: busy {_shares(run.busy)}, {row['rate']:.1f} samples/s")
        return min(rows, key=lambda row: row["gap"])["cut"], rows

    def pair(self, cut: int) -> dict[str, Any]:
        """One stage, then two."""
        one, two = (self._run(cut, stages=n, steps=self._options.steps) for n in (1, 2))
        same = one.result["weights_sha256"] == two.result["weights_sha256"]
        return {
            "kind": "pair",
            "one_stage_rate": one.rate(),
            "two_stage_rate": two.rate(),
            "ratio": two.rate() / one.rate(),
            "result_ratio": two.result["samples_per_second"] / one.result["samples_per_second"],
            "one_stage_step_s": self._options.batch_size / one.rate(),
            "busy": two.busy,
            "peak_memory_bytes": {
                "one_stage": one.result["peak_memory_bytes"],
                "two_stages": two.result["peak_memory_bytes"],
            },
            "same_weights": same,
        }

    def bound(self, cut: int) -> dict[str, Any]:
        """One one-stage run alone, then two at the same time."""
        alone = self._run(cut, stages=1, steps=self._options.steps)
        started = [self._start(cut, stages=1, steps=self._options.steps) for _ in range(2)]
        try:
            both = [self._finish(process) for process in started]
        finally:
            for process in started:
                end_process(process)
        start_s = max(run.marks[0][1] for run in both)
        end_s = min(run.marks[-1][1] for run in both)
        rates = [run.rate(start_s, end_s) for run in both]
        return {
            "kind": "bound",
            "alone_rate": alone.rate(),
            "together_rates": rates,
            "ratio": sum(rates) / alone.rate(),
        }

    def _run(self, cut: int, *, stages: int, steps: int) -> Run:
        process = self._start(cut, stages=stages, steps=steps)
        try:
            return self._finish(process)
        finally:
            end_process(process)

    def _start(self, cut: int, *, stages: int, steps: int) -> subprocess.Popen[str]:
        self._num_runs += 1
        recipe = self._recipe(cut, stages, steps).model_dump_json(exclude_unset=True)
        out = str(self._folder / f"run-{self._num_runs}")
        command = [sys.executable, "-m", "benchmarks.speed.one", recipe, out]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def _finish(self, process: subprocess.Popen[str]) -> Run:
        output, _ = process.communicate(timeout=_TIMEOUT_S)
        if process.returncode:
            raise RuntimeError(f"a run ended with code {process.returncode}; see above.")
        report = json.loads(output.splitlines()[-1])
        marks = tuple((step, time_s) for step, time_s in report["marks"] if step > 3)
        return Run(marks, report["result"], self._options.batch_size)

    def _recipe(self, cut: int, stages: int, steps: int) -> Recipe:
        size = self._options.batch_size
        settings = {
            "data.name": "synthetic",
            "data.shape": [3, 32, 32],
            "data.num_train": 8 * size,
            "data.num_test": 16,
            "data.batch_size": size,
            "model.depth": self._options.depth,
            "model.width": self._options.width,
            "split.blocks": 2,
            "split.cuts": [cut],
            "train.epochs": steps,  # more than max_steps allows
            "train.max_steps": steps,
            "train.evaluate_every": 0,
            "train.threads_per_stage": 1,
            "runtime.stages": stages,
            "runtime.capacity": self._options.capacity,
        }
        return load_recipe(
            "digits-resnet", [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        )


def _print_pairs(cut: int, pairs: list[dict[str, Any]]) -> None:
    step_ms = Spread.of([1e3 * row["one_stage_step_s"] for row in pairs])
    print(f"taken: cut {cut}; a step of both blocks takes {step_ms.text(1, ' ms')}")
    for row in pairs:
        weights = "the same weights" if row["same_weights"] else "OTHER WEIGHTS"
        print(
            f"one stage {row['one_stage_rate']:.1f}, two {row['two_stage_rate']:.1f} samples/s:"
            f" ratio {row['ratio']:.3f}, busy {_shares(row['busy'])}, {weights}"
        )
    print(f"two stages to one: {Spread.of([row['ratio'] for row in pairs]).text()}")


def _shares(busy: tuple[float, ...]) -> str:
    return " ".join(f"{100 * share:.1f} %" for share in busy)


if __name__ == "__main__":
    main()
