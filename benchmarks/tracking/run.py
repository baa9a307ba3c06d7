"""What does it cost to see what a run does?

Method: (a) the microseconds of a change of activity without a recorder, with spans that are only
counted, and with spans that are recorded; and of writing a recorded span out. (b) The milliseconds
of drawing the live view, which happens twice a second. (c) The shipped recipe digits-resnet in one
process with ``track.trace_steps`` 0 and 100, in turn, and the ratio of their samples per second
within a repeat; the first repeat warms up and does not count.

Reading: a stage with b blocks changes its activity about 2 b + 3 times a message, so (a) times that
is what a message pays. (c) holds it against the run as a whole; on a shared machine its spread is
larger than what is looked for, so (a) is the figure and (c) the check that nothing was forgotten.

Run from the repository's root: ``python -m benchmarks.tracking.run``
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import Spread, new_parser, write_report
from rich.console import Console

import ppll
from ppll.live import LiveView
from ppll.status import Activity, Monitor
from ppll.tracing.spans import Tracer, Windows

NUM_SPANS = 19_000
WINDOWS = {"counted": Windows(-1, 2**40), "recorded": Windows(2**40, 0)}
EPOCHS = 4


def main() -> None:
    options = new_parser(__doc__, repeats=9).parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in ("off", *WINDOWS):
            both = [_changes(folder, kind) for _ in range(options.repeats)]
            rows.append(_row(f"a change of activity, {kind}", "us", [a for a, _ in both]))
            if kind == "recorded":
                rows.append(_row("writing a span out", "us", [b for _, b in both]))
        rows.append(_row("drawing the live view", "ms", _drawings(folder, options.repeats)))
        rows += _runs(folder, options.repeats)
    write_report(options, rows)


def _row(what: str, unit: str, values: list[float]) -> dict[str, Any]:
    spread = Spread.of(values)
    print(f"{what}: {spread.text(3, f' {unit}')}")
    return {"what": what, "unit": unit, **spread.to_dict()}


def _changes(folder: Path, kind: str) -> tuple[float, float]:
    """Microseconds of a change of activity, and of writing a span out."""
    monitor, tracer = Monitor(), None
    if kind != "off":
        tracer = Tracer(
            folder / "rank-0.jsonl",
            rank=0,
            blocks=[0],
            windows=WINDOWS[kind],
            capacity=4,
            stage=0,
            place="stage 0",
            start="a",
        )
        monitor.recorder = tracer
    spent_s = _timed(lambda: _work(monitor))
    written_s = _timed(tracer.close) if tracer is not None else 0.0
    monitor.page.close()
    return 1e6 * spent_s / NUM_SPANS, 1e6 * written_s / NUM_SPANS


def _work(monitor: Monitor) -> None:
    for step in range(NUM_SPANS // 2):
        monitor.enter(Activity.FORWARD, block=0, step=step)
        monitor.enter(Activity.LEARN, block=0)


def _drawings(folder: Path, repeats: int) -> list[float]:
    trainer = ppll.Trainer("digits-resnet", out=folder / "drawn")
    view = LiveView(Console(file=io.StringIO(), width=80), trainer.blueprint)
    monitor = Monitor()
    monitor.num_samples = 64
    monitor.enter(Activity.LEARN, block=0, step=1)
    view.update([monitor.status])
    to = Console(file=io.StringIO(), width=80, force_terminal=True)
    return [1e3 * _timed(lambda: to.print(view.render())) for _ in range(repeats + 1)][1:]


def _runs(folder: Path, repeats: int) -> list[dict[str, Any]]:
    rates: dict[int, list[float]] = {0: [], 100: []}
    for repeat in range(repeats + 1):
        for steps, found in rates.items():
            recipe = ppll.load_recipe(
                "digits-resnet", [f"train.epochs={EPOCHS}", f"track.trace_steps={steps}"]
            )
            result = ppll.Trainer(recipe, out=folder / f"{steps}-{repeat}").fit()
            found.append(result.samples_per_second)
    rows = [
        _row(f"samples per second, track.trace_steps = {steps}", "", found[1:])
        for steps, found in rates.items()
    ]
    ratios = [b / a for a, b in zip(rates[0][1:], rates[100][1:], strict=True)]
    return [*rows, _row("ratio with to without", "", ratios)]


def _timed(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


if __name__ == "__main__":
    main()
