"""How long from the command to the first step?

Method: ``python -m ppll train digits-resnet --stages 4`` with ``train.max_steps=1`` and
``runtime.log_every_steps=1`` is started as a user starts it. A rank writes its first line of
metrics when it has learned from the first batch, so the clock stops when the last rank's file has a
line; it is looked at every 10 ms.

Reading: what passes is Python, the imports, the data, the first checkpoint, the start and the
connecting of the ranks, and one step of all four blocks. ``total`` is until the command is back:
the checkpoint, the test and the end of all processes come on top. The first repeat may find cold
disk caches; it is listed first.

Run from the repository's root: ``python -m benchmarks.startup.run``
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import Spread, end_process, new_parser, write_report

_LOOK_EVERY_S = 0.01


def main() -> None:
    options = _parse()
    times = [_measure(options) for _ in range(options.repeats)]
    first_step = Spread.of([first for first, _ in times])
    total = Spread.of([whole for _, whole in times])
    print(f"{options.stages} stages, to the first step: {first_step.text(2, ' s')}")
    print(f"{options.stages} stages, total: {total.text(2, ' s')}")
    write_report(
        options,
        [
            {
                "recipe": options.recipe,
                "stages": options.stages,
                "first_step_s": first_step.to_dict(),
                "total_s": total.to_dict(),
            }
        ],
    )


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__, repeats=5)
    parser.add_argument("--recipe", default="digits-resnet")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--timeout-s", type=float, default=120.0)
    return parser.parse_args()


def _measure(options: argparse.Namespace) -> tuple[float, float]:
    """Seconds from the command to the first step, and to the end."""
    with tempfile.TemporaryDirectory(prefix="ppll-startup-") as folder:
        out = Path(folder) / "run"
        start = time.monotonic()
        process = subprocess.Popen(_command(options, out), stdout=subprocess.DEVNULL)
        try:
            metrics = out / "metrics" / f"rank-{options.stages - 1}.jsonl"
            first_step = _wait_for_line(metrics, process, start, options.timeout_s) - start
            process.wait(options.timeout_s)
            total = time.monotonic() - start
        finally:
            end_process(process)
        if process.returncode:
            raise RuntimeError(f"the command ended with code {process.returncode}; see above.")
        return first_step, total


def _command(options: argparse.Namespace, out: Path) -> list[str]:
    command = [sys.executable, "-m", "ppll", "train", options.recipe, "--quiet"]
    command += ["--stages", str(options.stages), "--out", str(out)]
    for setting in ("train.max_steps=1", "train.evaluate_every=0", "runtime.log_every_steps=1"):
        command += ["--set", setting]
    return command


def _wait_for_line(
    path: Path, process: subprocess.Popen[bytes], start: float, timeout_s: float
) -> float:
    """When the file had its first whole line, by the monotonic clock."""
    while True:
        now = time.monotonic()
        if path.exists() and b"\n" in path.read_bytes():
            return now
        if process.poll() is not None:
            raise RuntimeError(f"the command ended with code {process.returncode} and no step.")
        if now > start + timeout_s:
            raise TimeoutError(f"no step after {timeout_s:g} s.")
        time.sleep(_LOOK_EVERY_S)


if __name__ == "__main__":
    main()
