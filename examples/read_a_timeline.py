"""Train on two stages and ask the timeline which of them holds up the other.

``ppll trace RUN`` prints the same; the file that it names opens in https://ui.perfetto.dev.
"""

from pathlib import Path

import ppll
from ppll.run_folder import RunFolder
from ppll.tracing.advice import advise
from ppll.tracing.files import newest_start
from ppll.tracing.summary import summarize


def main() -> None:
    recipe = ppll.load_recipe("digits-resnet", ["train.epochs=2", "runtime.stages=2"])
    run = Path(ppll.Trainer(recipe).fit().run_folder)
    start = newest_start(RunFolder.open(run))
    summary = summarize(start)
    for stage in summary.stages:
        print(
            f"stage {stage.stage}: {1e3 * stage.work_s:.1f} ms of work a message, "
            f"busy {stage.busy:.0%}, waits for features {stage.receive_wait:.0%}, "
            f"for room {stage.send_wait:.0%}"
        )
    print(f"bottleneck: stage {summary.bottleneck.stage}")
    for text in advise(summary):
        print(text)
    longest = max((s for r in start.ranks for s in r.spans), key=lambda s: s.end_s - s.start_s)
    print(f"longest span: {longest.name}, {1e3 * (longest.end_s - longest.start_s):.0f} ms")
    print(f"timeline: {run / 'timeline.json'}")


if __name__ == "__main__":
    main()
