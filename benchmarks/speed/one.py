"""One training run in a process of its own, started by ``benchmarks.speed.run``.

Trains the recipe that stands as JSON on the command line and prints a line of JSON: what the run
came to, and ``marks``: when which step began its last block's learning in the last stage. Times are
the machine's monotonic clock's, as the stages wrote them on their status pages, so runs that go on
side by side can be compared over the same stretch of time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ppll import Trainer, fork_server
from ppll.config import Recipe
from ppll.status import Activity, Status


class Marks:
    """Notes when the last stage begins to learn with its last block, as often as it is seen."""

    def __init__(self, last_block: int) -> None:
        self.seen: dict[int, float] = {}
        self._last_block = last_block

    def __call__(self, statuses: Sequence[Status]) -> None:
        """Take note of what the launcher read."""
        status = statuses[-1]
        if status.activity is Activity.LEARN and status.block == self._last_block:
            self.seen.setdefault(status.step, status.since)


def main(recipe_json: str, out: str) -> dict[str, Any]:
    """Train, and say what came of it."""
    recipe = Recipe.from_dict(json.loads(recipe_json))
    if recipe.has_processes:
        fork_server.warm_up()
    trainer = Trainer(recipe, out=out)
    marks = Marks(trainer.blueprint.num_blocks - 1)
    trainer.watch = marks
    result = trainer.fit()
    return {"result": asdict(result), "marks": sorted(marks.seen.items())}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
