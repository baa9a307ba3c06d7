"""Losses of backpropagation batch by batch: the rival's, and those of PPLL's own control."""

from __future__ import annotations

import json
from pathlib import Path

import ppll
from ppll.baselines import RecipeWork, run_baseline
from ppll.baselines.run import BaselineResult
from ppll.config import Recipe
from tests.baselines.test_training import recipe

NUM_BATCHES = 4


def curve_recipe(model: str, devices: str, *settings: str) -> Recipe:
    return recipe(model).with_settings([f"runtime.devices={devices}", *settings])


def rival(recipe: Recipe, system: str = "backprop", **options: int) -> BaselineResult:
    options = {"num_batches": NUM_BATCHES, "warm_up": 1, **options}
    return run_baseline(system, RecipeWork(recipe), timeout_s=300, **options)


def losses_of_control(recipe: Recipe, out: Path) -> list[float]:
    """Those of ``method.name = "backprop"``."""
    settings = ["method.name=backprop", "runtime.log_every_steps=1"]
    ppll.Trainer(recipe.with_settings(settings), out=out).fit()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]
