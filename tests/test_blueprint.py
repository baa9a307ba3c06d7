"""Layers into blocks, blocks onto stages."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import nn

from ppll.blocks.blueprint import Blueprint, block_ranges
from ppll.config import Recipe
from ppll.data_facts import DataFacts
from ppll.errors import ModelError
from ppll.models import models
from ppll.models.empty import without_values
from ppll.models.network import Layer, Network
from ppll.placement import place
from ppll.sections import SplitConfig


def network(num_layers: int, num_stem: int = 0, num_head: int = 0) -> Network:
    layers = [Layer(f"layer{i}", nn.Linear(3, 3)) for i in range(num_layers)]
    return Network(tuple(layers), num_stem, num_head)


def lengths(ranges) -> list[int]:
    return [len(layers) for layers in ranges]


def test_resnet_32_in_four_is_the_cut_of_infopro() -> None:
    with without_values():
        resnet = models.build("resnet32", {}, (3, 32, 32), 10)
    ranges = block_ranges(resnet, SplitConfig(blocks=4))
    assert (resnet.num_stem, resnet.num_head) == (1, 1)
    assert lengths(ranges) == [1 + 3, 4, 4, 4 + 1]


@pytest.mark.parametrize(
    ("num_blocks", "expected"), [(1, [9]), (2, [4, 5]), (3, [3, 2, 4]), (6, [2, 1, 1, 1, 1, 3])]
)
def test_stem_and_head_do_not_count(num_blocks: int, expected: list[int]) -> None:
    assert lengths(block_ranges(network(9, 1, 2), SplitConfig(blocks=num_blocks))) == expected


def test_explicit_cuts_are_first_layers() -> None:
    ranges = block_ranges(network(6, 1, 1), SplitConfig(blocks=3, cuts=(1, 5)))
    assert ranges == (range(0, 1), range(1, 5), range(5, 6))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            {"blocks": 5},
            r"5 blocks of 4 layers \(2 more, stem and head, are not counted\): .* 1 to 4",
        ),
        ({"blocks": 2, "cuts": (6,)}, r"names layer 6, but the network has 6 .* 1 to 5"),
    ],
)
def test_cuts_that_cannot_be_are_refused(split, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        block_ranges(network(6, 1, 1), SplitConfig(**split))


@hypothesis.given(st.integers(1, 60), st.integers(1, 20))
def test_runs_are_contiguous_and_nearly_equal(num_items: int, num_places: int) -> None:
    runs = place(num_items, num_places)
    assert [item for run in runs for item in run] == list(range(num_items))
    assert len(runs) == num_places
    assert max(lengths(runs)) - min(lengths(runs)) <= 1
    assert len(runs[-1]) == max(lengths(runs))


def draw(net: Network, num_classes: int = 3, **tree) -> Blueprint:
    recipe = Recipe.from_dict({"split": {"blocks": 2}, **tree})
    return Blueprint.draw(recipe, net, DataFacts((3,), num_classes, 5))


def test_the_output_must_fit_the_classes() -> None:
    with pytest.raises(ModelError, match=r"shape \(3,\).* 4 classes: it must be \(4,\)"):
        draw(network(4), num_classes=4)


def test_no_more_stages_than_blocks() -> None:
    blueprint = draw(network(4))
    assert blueprint.stage_blocks(2) == (range(0, 1), range(1, 2))
    with pytest.raises(ModelError, match="ask for 1 to 2 stages"):
        blueprint.stage_blocks(3)


def test_end_to_end_methods_are_one_block() -> None:
    blueprint = draw(network(4), method={"name": "backprop"})
    assert blueprint.ranges == (range(0, 4),)


OVERRIDES = {
    "optimizer": {"lr": 0.1, "blocks": {"0": {"lr": 0.5, "weight_decay": 0}}},
    "schedule": {"blocks": {"0": {"warmup_epochs": 2, "name": "constant"}}},
}


def rates(blueprint: Blueprint) -> list[tuple[float, float, float]]:
    """Of every block, the highest learning rate, and the shares of it in steps 1 and 15."""
    blocks = [blueprint.build_block(i, torch.device("cpu")) for i in range(blueprint.num_blocks)]
    return [
        (
            b.updates.optimizer.param_groups[0]["lr"],
            round(b.updates.schedule.factor(1), 6),
            b.updates.schedule.factor(15),
        )
        for b in blocks
    ]


def test_overrides_are_for_blocks_of_local_methods() -> None:
    train = {"epochs": 3}
    first, last = rates(draw(network(4), train=train, method={"name": "dgl"}, **OVERRIDES))
    assert first == (0.5, 0.1, 1.0)
    assert last == (0.1, 1.0, pytest.approx(0.0109, abs=1e-4))
    end_to_end = draw(network(4), train=train, method={"name": "backprop"}, **OVERRIDES)
    assert rates(end_to_end) == [last]


@pytest.mark.parametrize(
    ("method", "constant", "knows_end"),
    [
        ("dgl", (), True),
        ("dgl", (0,), True),
        ("dgl", (0, 1), False),
        ("backprop", (0, 1), True),
    ],
)
def test_only_schedules_that_blocks_use_know_the_end(
    method: str, constant: tuple[int, ...], knows_end: bool
) -> None:
    schedule = {"blocks": {index: {"name": "constant"} for index in constant}}
    blueprint = draw(network(4), method={"name": method}, schedule=schedule)
    assert blueprint.knows_end is knows_end


@pytest.mark.parametrize(("max_steps", "num_steps"), [(None, 15), (7, 7), (99, 15)])
def test_the_run_ends_after_its_epochs_or_steps(max_steps, num_steps: int) -> None:
    train = {"epochs": 3} | ({"max_steps": max_steps} if max_steps else {})
    assert draw(network(4), train=train).num_steps == num_steps
