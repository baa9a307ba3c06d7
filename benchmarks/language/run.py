"""Perplexity of language models by local learning beside backprop's, and of fine-tuning.

    python -m benchmarks.language.run blocks --seeds 3 --json benchmarks/language/blocks.json
    python -m benchmarks.language.run fine --json benchmarks/language/fine.json
    python -m benchmarks.language.run memory --json benchmarks/language/memory.json

All runs of a part have the same data, network, optimizer and number of steps. Rows are written
after every run, and what the file already has is not run again, so a part that is stopped goes on
where it was (remove the file to begin anew). ``memory`` counts the bytes that
autograd keeps for the backward passes of one training step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.kept import kept_in_a_step

import ppll
from ppll.data_facts import DataFacts
from ppll.job import draw_blueprint
from ppll.message import FEATURES, TARGETS
from ppll.recipe_files import load_recipe

BLOCKS = {
    "backprop": ["method.name=backprop"],
    "dgl, 4 blocks": [],
    "dgl, 2 blocks": ["split.blocks=2"],
    "dgl, 8 blocks": ["split.blocks=8"],
    "solo, 4 blocks": ["method.name=solo"],
    "dgl, 4 blocks, heads of depth 2": ["method.auxiliary_options.depth=2"],
    "dgl, 4 blocks, linear heads": ["method.auxiliary=linear", "method.auxiliary_options={}"],
}
LORA = ["model.lora_rank=32", "model.lora_alpha=32", "split.blocks=2", "optimizer.blocks.0.lr=1e-5"]
"""The first block, which hears nothing of the task, hardly moves: as it is trained, so it stays."""
LOPT = ["method.name=lopt", *LORA]
QUARTER = "split.cuts=[3]"
RANK_4 = ["model.lora_rank=4", "model.lora_alpha=16", "optimizer.lr=4e-3"]
READOUT = ["method.auxiliary=frozen-readout", "method.auxiliary_options.adapter=24"]
ZEROLOCK = ["method.name=zerolock", *READOUT, "method.alpha=0.95", *LORA]
FINE = {
    "no fine-tuning": ["method.name=backprop", "optimizer.lr=1e-12", "train.max_steps=1"],
    "backprop, all weights, lr 0.001": ["method.name=backprop", "optimizer.lr=1e-3"],
    "backprop, all weights, lr 0.002": ["method.name=backprop", "optimizer.lr=2e-3"],
    "backprop, all weights, lr 0.004": ["method.name=backprop", "optimizer.lr=4e-3"],
    "backprop, all weights, lr 0.008": ["method.name=backprop", "optimizer.lr=8e-3"],
    "backprop, all weights, lr 0.016": ["method.name=backprop", "optimizer.lr=16e-3"],
    "backprop, LoRA, lr 0.004": ["method.name=backprop", *LORA[:2], "optimizer.lr=4e-3"],
    "backprop, LoRA of rank 4, lr 0.004": ["method.name=backprop", *RANK_4],
    "lopt, LoRA of rank 4, lr 0.004, four blocks that all learn so": ["method.name=lopt", *RANK_4],
    "zerolock, LoRA of rank 4, lr 0.004, four blocks that all learn so": [
        *("method.name=zerolock", *READOUT, *RANK_4)
    ],
    "lopt, LoRA, lr 0.004": [*LOPT, "optimizer.lr=4e-3"],
    "lopt, LoRA, lr 0.01": [*LOPT, "optimizer.lr=1e-2"],
    "lopt, LoRA, lr 0.02": [*LOPT, "optimizer.lr=2e-2"],
    "lopt, LoRA, lr 0.01, cut after a quarter": [*LOPT, "optimizer.lr=1e-2", QUARTER],
    "zerolock, LoRA, lr 0.01": [*ZEROLOCK, "optimizer.lr=1e-2"],
    "zerolock, LoRA, lr 0.01, cut after a quarter": [*ZEROLOCK, "optimizer.lr=1e-2", QUARTER],
}
MACHINE = (
    f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
    f"torch {torch.__version__}"
)
UNSEEN = 'data.without=["idlelib"]'
FINE_DATA = ['data.only=["idlelib"]', "data.num_test=1024"]


class Part:
    """The rows of one part: those that the file has, and those that are measured now."""

    def __init__(self, asked: argparse.Namespace, folder: Path) -> None:
        self._asked, self.folder = asked, folder
        text = asked.json.read_text() if asked.json.exists() else '{"rows": []}'
        self._rows: list[dict[str, Any]] = json.loads(text)["rows"]

    def chosen(self, settings: dict[str, list[str]]) -> Iterator[tuple[str, int, list[str]]]:
        """What is asked for and missing, as name, seed and settings; seed after seed."""
        for seed in range(self._asked.seeds):
            for name, own in settings.items():
                known = any((name, seed) == (r["name"], r.get("seed")) for r in self._rows)
                if not known and name in (self._asked.only or settings):
                    yield name, seed, own

    def add(self, row: dict[str, Any]) -> None:
        """Put a row in place of one of the same name and seed, and write all."""
        key = (row["name"], row.get("seed"))
        self._rows = [r for r in self._rows if (r["name"], r.get("seed")) != key] + [row]
        print(*(v for k, v in row.items() if k != "settings"), flush=True)
        content = {"machine": MACHINE, "rows": self._rows}
        self._asked.json.write_text(json.dumps(content, indent=1) + "\n")


def blocks(part: Part, steps: int) -> None:
    """The shipped recipe by number of blocks and head."""
    for name, seed, settings in part.chosen(BLOCKS):
        own = [*settings, "data.num_test=512", f"train.seed={seed}", f"train.max_steps={steps}"]
        part.add(trained(name, own, part.folder / f"{name}-{seed}"))


def fine(part: Part, steps: int) -> None:
    """A network that backprop trained without ``idlelib`` goes on with its files alone."""
    start = part.folder / "start"
    own = ["method.name=backprop", UNSEEN, f"train.max_steps={4 * steps}"]
    part.add(trained("backprop, before fine-tuning, on other text", own, start))
    for name, seed, settings in part.chosen(FINE):
        own = [*FINE_DATA, f"train.seed={seed}", f"train.max_steps={steps}", *settings]
        part.add(trained(name, own, part.folder / f"{name}-{seed}", start))


def memory(part: Part, steps: int) -> None:
    """The most bytes that are kept in a training step of the recipe."""
    del steps
    for name, seed, settings in part.chosen(BLOCKS):
        kept = kept_bytes(settings)
        part.add({"name": name, "seed": seed, "settings": settings, "kept_bytes": kept})


def kept_bytes(settings: list[str]) -> int:
    """Of one step, block after block, as one stage runs them."""
    recipe = load_recipe("text-gpt", settings)
    facts = DataFacts((128,), 256, 1000, num_tokens=256, predicts_tokens=True)
    tokens = torch.randint(256, (recipe.data.batch_size, 129))
    fields = {FEATURES: tokens[:, :-1].clone(), TARGETS: tokens[:, 1:].clone()}
    return kept_in_a_step(draw_blueprint(recipe, facts, None), fields)


def trained(
    name: str, settings: list[str], out: Path, weights: Path | None = None
) -> dict[str, Any]:
    """One run, which begins with the weights of another where that is given, as a row."""
    base = ["data.validation=0", "track.trace_steps=0", "train.evaluate_every=0"]
    base += [f"model.weights={weights}"] if weights else []
    recipe = load_recipe("text-gpt", [*base, *settings])
    start = time.perf_counter()
    result = ppll.Trainer(recipe, out=out).fit()
    return {
        "name": name,
        "seed": recipe.train.seed,
        "settings": settings,
        "steps": result.step,
        "test_perplexity": result.test_perplexity,
        "exit_perplexity": result.exit_perplexity,
        "train_seconds": result.train_seconds,
        "seconds": time.perf_counter() - start,
        "training_peak_bytes": result.training_peak_bytes,
    }


def main() -> None:
    """Run one part and write it as it grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["blocks", "fine", "memory"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rows of the part")
    parser.add_argument("--steps", type=int, help="400 for blocks, 100 for fine")
    parser.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args()
    steps = asked.steps or {"blocks": 400, "fine": 100, "memory": 1}[asked.part]
    with tempfile.TemporaryDirectory() as folder:
        run = {"blocks": blocks, "fine": fine, "memory": memory}[asked.part]
        run(Part(asked, Path(folder)), steps)


if __name__ == "__main__":
    main()
