"""Perplexity of language models by local learning beside backprop's, and of fine-tuning.

    python -m benchmarks.language.run blocks --seeds 1 --json benchmarks/language/blocks.json
    python -m benchmarks.language.run fine --json benchmarks/language/fine.json

    python -m benchmarks.language.run memory --json benchmarks/language/memory.json

All runs of a part have the same data, network, optimizer and number of steps. Rows are written
after every run, so a part that is stopped keeps what it has. ``memory`` counts the bytes that
autograd keeps for the backward passes of one training step.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.kept import Kept

import ppll
from ppll.data_facts import DataFacts
from ppll.job import draw_blueprint
from ppll.message import FEATURES, TARGETS, Kind, Message
from ppll.models.network import initialise
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
ZEROLOCK = [
    *("method.name=zerolock", "method.auxiliary=frozen-readout", "method.alpha=0.95"),
    *("method.auxiliary_options.adapter=24", *LORA),
]
QUARTER = "split.cuts=[3]"
FINE = {
    "no fine-tuning": ["method.name=backprop", "optimizer.lr=1e-12", "train.max_steps=1"],
    "backprop, all weights, lr 0.001": ["method.name=backprop", "optimizer.lr=1e-3"],
    "backprop, all weights, lr 0.002": ["method.name=backprop", "optimizer.lr=2e-3"],
    "backprop, all weights, lr 0.004": ["method.name=backprop", "optimizer.lr=4e-3"],
    "backprop, LoRA, lr 0.004": ["method.name=backprop", *LORA[:2], "optimizer.lr=4e-3"],
    "lopt, LoRA, lr 0.004": [*LOPT, "optimizer.lr=4e-3"],
    "lopt, LoRA, lr 0.01": [*LOPT, "optimizer.lr=1e-2"],
    "lopt, LoRA, lr 0.02": [*LOPT, "optimizer.lr=2e-2"],
    "lopt, LoRA, lr 0.01, cut after a quarter": [*LOPT, "optimizer.lr=1e-2", QUARTER],
    "zerolock, LoRA, lr 0.01": [*ZEROLOCK, "optimizer.lr=1e-2"],
    "zerolock, LoRA, lr 0.01, cut after a quarter": [*ZEROLOCK, "optimizer.lr=1e-2", QUARTER],
}
UNSEEN = 'data.without=["idlelib"]'
FINE_DATA = ['data.only=["idlelib"]', "data.num_test=1024"]


def blocks(folder: Path, seeds: int, steps: int) -> Iterator[dict[str, Any]]:
    """The shipped recipe by number of blocks and head."""
    for seed in range(seeds):
        for name, settings in BLOCKS.items():
            own = [*settings, "data.num_test=512", f"train.seed={seed}", f"train.max_steps={steps}"]
            yield trained(name, own, folder / f"{name}-{seed}")


def fine(folder: Path, seeds: int, steps: int) -> Iterator[dict[str, Any]]:
    """A network that backprop trained without ``idlelib`` goes on with its files alone."""
    start = folder / "start"
    own = ["method.name=backprop", UNSEEN, f"train.max_steps={4 * steps}"]
    yield trained("backprop, before fine-tuning, on other text", own, start)
    for seed in range(seeds):
        for name, settings in FINE.items():
            own = [*FINE_DATA, f"model.weights={start}"]
            own += [f"train.seed={seed}", f"train.max_steps={steps}", *settings]
            yield trained(name, own, folder / f"{name}-{seed}")


def memory(folder: Path, seeds: int, steps: int) -> Iterator[dict[str, Any]]:
    """The most bytes that are kept in a training step of the recipe."""
    del folder, seeds, steps
    for name, settings in BLOCKS.items():
        yield {"name": name, "settings": settings, "kept_bytes": kept_bytes(settings)}


def kept_bytes(settings: list[str]) -> int:
    """Of one step, block after block, as one stage runs them."""
    recipe = load_recipe("text-gpt", settings)
    facts = DataFacts((128,), 256, 1000, holds_tokens=True)
    blueprint = draw_blueprint(recipe, facts, None)
    device = torch.device("cpu")
    made = [blueprint.build_block(index, device) for index in range(blueprint.num_blocks)]
    for block in made:
        for prefix, module in block.modules.named():
            initialise(module, prefix, 0)
    kept = Kept(t for block in made for _, t in block.modules.named_tensors())
    tokens = torch.randint(256, (recipe.data.batch_size, 129))
    fields = {FEATURES: tokens[:, :-1].clone(), TARGETS: tokens[:, 1:].clone()}
    message = Message(kind=Kind.TRAIN, sequence=0, step=1, tensors=fields)
    with kept.counted():
        for block in made:
            message = block.forward(message)
            block.learn()
    return kept.most


def trained(name: str, settings: list[str], out: Path) -> dict[str, Any]:
    """One run, as a row."""
    base = ["data.validation=0", "track.trace_steps=0", "train.evaluate_every=0"]
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
    parser.add_argument("--steps", type=int, help="400 for blocks, 100 for fine")
    parser.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args()
    steps = asked.steps or {"blocks": 400, "fine": 100, "memory": 1}[asked.part]
    machine = f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = {"blocks": blocks, "fine": fine, "memory": memory}[asked.part]
        for row in run(Path(folder), asked.seeds, steps):
            rows.append(row)
            print(*(v for k, v in row.items() if k != "settings"), flush=True)
            content = {"machine": machine, "rows": rows}
            asked.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
