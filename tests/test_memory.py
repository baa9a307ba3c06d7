"""What is kept for backward passes: one stage frees each block's before the next block runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from benchmarks.gpu.kept import Kept

from ppll.blocks.block import Block
from ppll.message import Kind, Message
from ppll.recipe_files import load_recipe
from tests.interleaving import (
    MadeUpBatches,
    MadeUpText,
    blueprint_of,
    built_blocks,
    interleave,
    make_workers,
    small_recipe,
)


def most_bytes(
    method: str, num_blocks: int, num_parts: int = 1, network: str = "resnet", *settings: str
) -> tuple[int, list[int]]:
    """The most that is kept in a step, and what is left when each block begins its forward."""
    base = small_recipe(network, method, split_blocks=num_blocks, accumulate=num_parts)
    depth = {"resnet": 26, "gpt-rotary": 8}[network]
    base = base.with_settings(["train.epochs=2", f"model.depth={depth}", *settings])
    batches = MadeUpBatches((6,)) if network == "resnet" else MadeUpText((6,), num_tokens=64)
    blueprint = blueprint_of(base, batches)
    blocks = built_blocks(blueprint)
    kept = Kept(t for block in blocks for _, t in block.modules.named_tensors())
    left: list[int] = []
    for block in blocks:
        block.forward = noted(block, kept, left)  # type: ignore[method-assign]
    workers = make_workers(blueprint, blocks, batches, 1, 2, [Kind.TRAIN, Kind.STOP])
    with kept.counted():
        interleave(workers, lambda num_able: 0)
    assert kept.bytes == 0
    return kept.most, left


def noted(block: Block, kept: Kept, left: list[int]) -> Callable[[Message], Message]:
    """The block's forward; ``left`` gets what is kept before it, at each."""
    forward = block.forward

    def wrapped(message: Message) -> Message:
        left.append(kept.bytes)
        return forward(message)

    return wrapped


@pytest.mark.parametrize("method", ["dgl", "infopro", "sgr", "scpl", "manpp"])
def test_nothing_is_kept_when_the_next_block_begins(method: str) -> None:
    most, left = most_bytes(method, 4)
    assert left == [0] * 8  # four blocks, two steps
    assert most > 0


def test_four_blocks_keep_less_than_backprop() -> None:
    """The largest block and its head, instead of the whole network."""
    (local, _), (whole, left) = most_bytes("greedy", 4), most_bytes("backprop", 4)
    assert left == [0] * 2
    assert local < 0.5 * whole
    assert most_bytes("greedy", 2)[0] > local


def test_batches_in_parts_keep_a_part() -> None:
    (whole, _), (parts, left) = most_bytes("greedy", 4), most_bytes("greedy", 4, num_parts=3)
    assert left == [0] * 24
    assert parts < 0.4 * whole


def test_a_language_model_in_four_blocks_keeps_half_of_what_backprop_does() -> None:
    """With the heads of the shipped recipe: a layer like later ones, and a readout."""
    options = load_recipe("text-gpt").method.options
    heads = ["method.auxiliary=auglocal"]
    heads += [f"method.auxiliary_options.{k}={v}" for k, v in options["auxiliary_options"].items()]
    local, left = most_bytes("dgl", 4, 1, "gpt-rotary", *heads)
    whole, _ = most_bytes("backprop", 4, 1, "gpt-rotary")
    assert left == [0] * 8
    assert local < 0.6 * whole
