"""The run that tests start on several hosts, and what it came to."""

from __future__ import annotations

import json
from pathlib import Path

import ppll

RECIPE = ["digits-resnet", "--set=model.depth=14", "--set=model.width=4", "--set=train.epochs=6",
          "--set=checkpoint.every_steps=10"]  # fmt: skip
"""Four blocks, 138 steps."""
EIGHT = ["--set=model.depth=20", "--set=split.blocks=8", "--set=train.epochs=2"]
"""Makes eight blocks of it, and 46 steps."""


def train(out: Path, *options: str) -> list[str]:
    """What every host is asked for."""
    return ["ppll", "train", *RECIPE, f"--out={out}", *options]


def train_here(out: Path, *options: str) -> ppll.Result:
    """The same in this process."""
    settings = [option.removeprefix("--set=") for option in [*RECIPE[1:], *options]]
    return ppll.Trainer(ppll.load_recipe("digits-resnet", settings), out=out).fit()


def weights(out: Path) -> str:
    """The hash of what a run came to."""
    found: str = json.loads((out / "result.json").read_text())["weights_sha256"]
    return found
