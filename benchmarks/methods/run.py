"""Does what a method sends beside its features cost waiting?

Some methods send a second part of a message when a block has learned, some read the next block's
parameters over a side channel, some let the image or a block's own input travel along. All that may
cost memory and copying, but no stage should wait for it.

Method: a network whose layers compute a little and sleep a lot is trained on digits through
``ppll.Trainer`` by every method on the shelf that learns locally, with four blocks on four stages.
Processes, data, auxiliary networks, losses, channels, second parts and slow parameters are the real
ones; the sleeping makes two cores enough for four stages. A layer that an auxiliary network copies
sleeps there, too, and where a loss differentiates a gradient, the backward sleeps again: that is
the block's own work.

Allowed is what the slowest block takes alone: in each repeat, just before the run, the same blocks
learn from the same messages one after the other in this process, without channels; a block's time
is that of its forward and its learning step, the mean over batches. Achieved are seconds a batch at
the last stage in steady state, without the first and last batches, which fill the pipeline and
drain it.

Reading: allowed over achieved is 1 where nothing waits; the target is at least 0.95. ``greedy`` and
``dgl`` send features and targets only, so what they lack of 1 is the system's; what another method
lacks beyond that is the price of what it sends. Where processors are short, blocks take longer in
four processes than one at a time, which lowers the ratio although nothing waits; the share of time
in which the busiest stage waits for others tells the two apart.

Run from the repository's root: ``python -m benchmarks.methods.run``
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from benchmarks.methods.network import sleeping_network
from benchmarks.report import Spread, new_parser, write_report
from torch import Tensor

from ppll import Trainer, fork_server
from ppll.batch_ends import read_ends
from ppll.blocks.block import Block
from ppll.blocks.blueprint import Blueprint
from ppll.config import Recipe
from ppll.data import Loader, load_batches
from ppll.message import Kind, Message
from ppll.methods import methods
from ppll.models.initialising import initialise
from ppll.recipe_files import load_recipe
from ppll.run_folder import RunFolder
from ppll.stream import training_stream
from ppll.zoo import travels

TARGET = 0.95
STAGES = 4
LAYERS = 8
WIDTH = 16
ALONE = 25
"""Batches that blocks learn alone; the first ones warm up."""
WARM_UP = 5
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "infopro": ({"objective": "contrast"},),
    "contsup": ({"context": "R1"}, {"context": "R1E"}),
}
"""Options under which a method does or sends something else than by default."""


@dataclass
class Entrant:
    """A method with options, and what was measured of it.

    Attributes:
        method: Its name.
        options: Those that are not its defaults.
        block_s: Seconds a batch that every block takes alone, a row a repeat.
        achieved_s: Seconds a batch of the pipeline, one a repeat.
        busy: Share of the time in which each stage did not wait for another, a row a repeat.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    block_s: list[list[float]] = field(default_factory=list)
    achieved_s: list[float] = field(default_factory=list)
    busy: list[list[float]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Method and options, to print."""
        return " ".join([self.method, *map(str, self.options.values())])

    @property
    def allowed_s(self) -> list[float]:
        """Seconds a batch of the slowest block alone, one a repeat."""
        return [max(blocks) for blocks in self.block_s]

    @property
    def ratio(self) -> Spread:
        """Allowed over achieved."""
        pairs = zip(self.allowed_s, self.achieved_s, strict=True)
        return Spread.of([allowed / achieved for allowed, achieved in pairs])

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "method": self.method,
            "options": self.options,
            "travels": travels(methods.build(self.method, self.options)),
            "block_alone_s": self.block_s,
            "allowed_s": Spread.of(self.allowed_s).to_dict(),
            "achieved_s": Spread.of(self.achieved_s).to_dict(),
            "ratio": self.ratio.to_dict(),
            "target": TARGET,
            "busy_fraction": self.busy,
        }

    def line(self) -> str:
        """For people."""
        ratio = self.ratio
        allowed, achieved = (
            Spread.of([1e3 * s for s in seconds]).median
            for seconds in (self.allowed_s, self.achieved_s)
        )
        verdict = "reached" if ratio.median >= TARGET else "MISSED"
        waits = statistics.median(1 - max(busy) for busy in self.busy)
        return (
            f"{self.name:<16} allowed {allowed:.1f} ms, achieved {achieved:.1f} ms a batch: "
            f"{ratio.text(3)}, target {TARGET}: {verdict}; "
            f"the busiest stage waits {100 * waits:.1f} %"
        )


def main() -> None:
    options = _parse()
    fork_server.warm_up()
    torch.set_num_threads(1)  # as the stages have
    entrants = list(_entrants(options.methods))
    with tempfile.TemporaryDirectory(prefix="ppll-methods-") as folder:
        for repeat in range(options.repeats):
            for index, entrant in enumerate(entrants):
                _measure(entrant, options, Path(folder) / f"{repeat}-{index}")
    for entrant in entrants:
        print(entrant.line())
    write_report(options, [entrant.row() for entrant in entrants])


def _parse() -> argparse.Namespace:
    local = [entry.name for entry in methods if not methods.build(entry.name, {}).end_to_end]
    parser = new_parser(__doc__, repeats=3)
    parser.add_argument("--methods", nargs="+", choices=local, default=local)
    parser.add_argument("--forward-ms", type=float, default=10.0, help="of a layer")
    parser.add_argument("--backward-ms", type=float, default=20.0, help="of a layer")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--drop", type=int, default=20, help="do not count, first and last each")
    options = parser.parse_args()
    if not 1 <= 2 * options.drop < options.batches - 10:
        parser.error("--drop must be at least 1, and --batches more than twice as many and 10")
    return options


def _entrants(names: Sequence[str]) -> Iterator[Entrant]:
    for name in names:
        for options in ({}, *VARIANTS.get(name, ())):
            yield Entrant(name, options)


def _measure(entrant: Entrant, options: argparse.Namespace, out: Path) -> None:
    """One repeat: every block alone, then all on stages of their own."""
    recipe = _recipe(entrant, options)
    seconds = options.forward_ms / 1e3, options.backward_ms / 1e3
    model = sleeping_network(LAYERS, WIDTH, *seconds)
    trainer = Trainer(recipe, model=model, out=out)
    entrant.block_s.append(_blocks_alone(trainer.blueprint))
    result = trainer.fit()
    ends_s = read_ends(RunFolder(out).batch_ends(STAGES - 1))
    first, last = options.drop, options.batches - options.drop
    entrant.achieved_s.append((ends_s[last] - ends_s[first]) / (last - first))
    entrant.busy.append(list(result.busy_fraction))


def _recipe(entrant: Entrant, options: argparse.Namespace) -> Recipe:
    settings = {
        "data.batch_size": options.batch_size,
        "data.drop_last": True,
        "split.blocks": STAGES,
        "split.cuts": [LAYERS * block // STAGES for block in range(1, STAGES)],
        "method.name": entrant.method,
        **{f"method.{key}": value for key, value in entrant.options.items()},
        "optimizer.lr": 0.001,  # small enough for every local loss
        "train.epochs": options.batches,  # more than max_steps allows
        "train.max_steps": options.batches,
        "train.evaluate_every": 0,
        "train.threads_per_stage": 1,
        "runtime.stages": STAGES,
        "track.batch_ends": True,
    }
    return load_recipe("digits-resnet", [f"{k}={json.dumps(v)}" for k, v in settings.items()])


def _blocks_alone(blueprint: Blueprint) -> list[float]:
    """Seconds a batch that every block takes for forward and learning, nothing beside it."""
    blocks = [blueprint.build_block(i, torch.device("cpu")) for i in range(blueprint.num_blocks)]
    for block in blocks:
        for prefix, module in block.modules.named():
            initialise(module, prefix, blueprint.recipe.train.seed)
    stream = training_stream(_batches(blueprint), blueprint.recipe, ALONE)
    steps = [_step(blocks, message) for message in stream if message.kind is Kind.TRAIN]
    return [statistics.fmean(times) for times in zip(*steps[WARM_UP:], strict=True)]


def _batches(blueprint: Blueprint) -> Loader:
    recipe = blueprint.recipe
    return load_batches(recipe.data, seed=recipe.train.seed, fields=blueprint.method.fields)


def _step(blocks: Sequence[Block], message: Message) -> list[float]:
    """Seconds of every block for one training message."""
    seconds = []
    late: Mapping[str, Tensor] = {}
    for block, behind in zip(blocks, [*blocks[1:], None], strict=True):
        slow = None
        if behind is not None and block.method.slow_from is not None:
            slow = behind.published_parameters()
        begin_s = time.perf_counter()
        message = block.forward(message)
        late = block.learn(late, slow)
        seconds.append(time.perf_counter() - begin_s)
    return seconds


if __name__ == "__main__":
    main()
