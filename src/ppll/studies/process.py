"""One run of a study, in a process of its own.

So its peak memory is its own, a crash ends nothing else, and several can go on side by side. The
study writes the recipe into the standard input as a line of JSON and leaves it open for as long as
it lives.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from ppll.config import Recipe
from ppll.durable import write_whole
from ppll.errors import Interrupted, PpllError
from ppll.run_folder import RunFolder
from ppll.studies.outcome import exits_path, is_trained
from ppll.trained.evaluation import evaluate_exits
from ppll.trainer import Trainer

__all__ = ["complete", "main"]


def main(path: str) -> int:
    """Complete the run at ``path`` and say how it ended.

    Returns:
        0 done, 1 failed, 130 interrupted, as ``ppll train`` has it.
    """
    try:
        recipe = Recipe.from_dict(json.loads(sys.stdin.buffer.readline()))
        threading.Thread(target=_end_with_the_study, name="lifeline", daemon=True).start()
        complete(recipe, RunFolder(Path(path)))
    except PpllError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 130 if isinstance(error, Interrupted) else 1
    return 0


def _end_with_the_study() -> None:
    """Wait until the other end of the standard input is gone, then save and stop."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def complete(recipe: Recipe, folder: RunFolder) -> None:
    """Train a run to its end and test its exits; what is done already is not done again.

    Raises:
        PpllError: Like ``Trainer`` and ``evaluate_exits``.
    """
    if not is_trained(folder, recipe):
        # A start that finds the last checkpoint but no result writes one; it replaces none.
        folder.result.unlink(missing_ok=True)
        Trainer(recipe, out=folder.path, resume=True).fit()
    report = evaluate_exits(folder.path).to_dict()
    write_whole(exits_path(folder), (json.dumps(report, indent=2) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
