"""What does one device give: samples a second and memory, backprop and local learning?

Method: a training batch of random images lies on the device; its labels, too. ``backprop`` is the
whole network as one block, ``dgl`` is local learning in four blocks in one process; both are the
same worker, so what differs is the algorithm. ``eager`` is one block after the other; ``graphs`` is
``train.cuda_graphs``; ``concurrent`` is that with ``runtime.concurrent_blocks``; ``compiled`` is
``train.compile``, and ``compiled graphs`` both. After a warm-up a repeat is so many steps between
two readings of the clock, the device idle at both.

Memory: on a GPU the most that torch's allocator had in use beside what rows before left there,
parameters and optimizer included, warm-up and recording, too; on a processor what autograd keeps
for backward passes, parameters apart, counted in one more step.

Rows are measured in order until ``--seconds`` are over; those that are left out are named.

Run from the repository's root: ``python -m benchmarks.gpu.training --device cuda``
"""

from __future__ import annotations

import argparse
import gc
import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from benchmarks.gpu.kept import Kept
from benchmarks.gpu.work import NETWORKS, TINY, make_recipe
from benchmarks.report import Spread, new_parser, write_report

from ppll.blocks.block import Block
from ppll.blocks.compiling import compiler_settings, missing_compiler
from ppll.blocks.streams import Streams, make_streams
from ppll.config import Recipe
from ppll.data_facts import DataFacts
from ppll.devices import check_devices, device_of
from ppll.ends import Ends
from ppll.job import draw_blueprint
from ppll.message import FEATURES, TARGETS, Kind, Message
from ppll.models.initialising import initialise
from ppll.numerics import set_numerics
from ppll.planning.pieces import clock
from ppll.worker import Worker

SHAPE, NUM_CLASSES = (3, 32, 32), 10
MODES: dict[str, list[str]] = {
    "eager": [],
    "graphs": ["train.cuda_graphs=true"],
    "concurrent": ["train.cuda_graphs=true", "runtime.concurrent_blocks=true"],
    "compiled": ["train.compile=true"],
    "compiled graphs": ["train.compile=true", "train.cuda_graphs=true"],
    "compiled concurrent": [
        *("train.compile=true", "train.cuda_graphs=true"),
        "runtime.concurrent_blocks=true",
    ],
}
WARM_UP = 6
"""Steps, of which the fourth is recorded."""


def main() -> None:
    options = _parse()
    deadline = time.monotonic() + options.seconds
    rows: list[dict[str, Any]] = []
    for network, batch_size, method, mode in _cases(options):
        row: dict[str, Any] = {"network": network, "batch_size": batch_size}
        row |= {"method": method, "mode": mode}
        if time.monotonic() > deadline:
            row["left_out"] = f"{options.seconds:g} s were over"
        else:
            row |= _measure(options, network, batch_size, method, mode)
        rows.append(row)
        print(_text(row), flush=True)
        write_report(options, rows)


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__, repeats=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="try the script on small networks")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--set", dest="settings", nargs="*", default=[], help="SECTION.KEY=VALUE")
    parser.add_argument("--steps", type=int, default=20, help="of a repeat")
    parser.add_argument("--seconds", type=float, default=240.0, help="begin no row after so many")
    return parser.parse_args()


def _cases(options: argparse.Namespace) -> Iterator[tuple[str, int, str, str]]:
    """Uncompiled ones first: they say most in the least time."""
    networks = [name for name in options.networks if name in TINY or not options.tiny]
    for compiles in (False, True):
        modes = [mode for mode in options.modes if mode.startswith("compiled") == compiles]
        for network, size in itertools.product(networks, options.batch_sizes):
            for method, mode in itertools.product(("backprop", "dgl"), modes):
                if method != "backprop" or not mode.endswith("concurrent"):
                    yield network, size, method, mode


def _measure(
    options: argparse.Namespace, network: str, batch_size: int, method: str, mode: str
) -> dict[str, Any]:
    recipe = make_recipe(network, batch_size, method, options.device, tiny=options.tiny)
    recipe = recipe.with_settings([*MODES[mode], *options.settings])
    compiles = recipe.train.compile
    check_devices(recipe)
    device = device_of(recipe.runtime, 0)
    if compiles and device.type == "cpu" and (missing := missing_compiler()) is not None:
        return {"left_out": f"no C++ compiler {missing}"}
    set_numerics(recipe.train, device)
    with ExitStack() as stack:
        if compiles:
            torch._dynamo.reset()
            stack.enter_context(compiler_settings())
        return _timed(options, recipe, device)


def _timed(options: argparse.Namespace, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    gc.collect()  # Graphs of the row before.
    others = 0
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        others = torch.cuda.memory_allocated(device)
    streams = make_streams(recipe, device, recipe.split.blocks)
    blocks, feed = make_blocks(recipe, device, streams), Feed(make_message(recipe, device))
    run = Worker(blocks, Ends(feed), streams=streams).run()
    with streams.home():
        warm_up_s = _seconds(run, feed, WARM_UP, device)
        seconds = [_seconds(run, feed, options.steps, device) for _ in range(options.repeats)]
    samples = options.steps * len(feed.message.targets)
    return {
        "samples_per_second": Spread.of([samples / s for s in seconds]).to_dict(),
        "warm_up_s": warm_up_s,
        "memory_bytes": _memory(blocks, feed.message, device) - others,
        "memory_is": "allocated" if device.type == "cuda" else "kept for backward passes",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "processor",
    }


class Feed:
    """An inbox that gives the same training message so many times."""

    capacity, fill = 1, 0

    def __init__(self, message: Message) -> None:
        self.message = message
        self.num_left = 0

    def ready(self) -> bool:
        """Whether there is one left."""
        return self.num_left > 0

    def wait(self, timeout_s: float | None = None) -> bool:  # noqa: ARG002
        """As ``ready``: nothing comes by itself."""
        return self.ready()

    def recv(self, timeout_s: float | None = None) -> Message:  # noqa: ARG002
        """The message, as that of the next step."""
        self.num_left -= 1
        self.message = replace(self.message, step=self.message.step + 1)
        return self.message

    def release(self, message: Message) -> None:
        """The next one lies in the same memory."""

    def close(self) -> None:
        """There is nothing to close."""


def _seconds(run: Iterator[object], feed: Feed, num_steps: int, device: torch.device) -> float:
    """Seconds of so many steps, after which the worker waits for its feed."""
    start = clock(device)
    feed.num_left = num_steps
    next(run)
    return clock(device) - start


def make_blocks(recipe: Recipe, device: torch.device, streams: Streams) -> list[Block]:
    """All blocks with their first values, on one device."""
    blueprint = draw_blueprint(recipe, DataFacts(SHAPE, NUM_CLASSES, 8), None)
    blocks = [
        blueprint.build_block(i, device, streams.recorder(i)) for i in range(blueprint.num_blocks)
    ]
    for block in blocks:
        for prefix, module in block.modules.named():
            initialise(module.cpu(), prefix, recipe.train.seed)
            module.to(device)
    return blocks


def make_message(recipe: Recipe, device: torch.device) -> Message:
    """A training batch of random images on a device."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(recipe.data.batch_size, *SHAPE, generator=generator)
    targets = torch.randint(NUM_CLASSES, (len(inputs),), generator=generator)
    tensors = {FEATURES: inputs, TARGETS: targets}
    return Message(kind=Kind.TRAIN, sequence=0, step=1, tensors=tensors).on(device)


def train_step(blocks: list[Block], message: Message) -> None:
    """One batch through all blocks, each learning before the next one begins."""
    for block in blocks:
        message = block.forward(message)
        block.learn()


def _memory(blocks: list[Block], message: Message, device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kept = Kept(tensor for block in blocks for _, tensor in block.modules.named_tensors())
    with kept.counted():
        train_step(blocks, message)
    return kept.most


def _text(row: dict[str, Any]) -> str:
    name = f"{row['network']}, batch {row['batch_size']}, {row['method']}, {row['mode']}"
    if "left_out" in row:
        return f"{name}: left out, {row['left_out']}"
    rate = row["samples_per_second"]["median"]
    return f"{name}: {rate:,.0f} samples/s, {row['memory_bytes'] / 2**20:,.1f} MiB"


if __name__ == "__main__":
    main()
