"""Where networks are cut."""

from __future__ import annotations

import itertools

import pytest

from ppll.cuts import NAMED_CUTS, cut_starts
from ppll.errors import ModelError
from ppll.models import models
from ppll.sections import SplitConfig

R32, R110 = 1 + 15 + 1, 1 + 54 + 1


def starts(cuts: str, blocks: int, num_layers: int) -> tuple[int, ...]:
    return cut_starts(SplitConfig(blocks=blocks, cuts=cuts), num_layers, 1, 1)


def test_infopro_s_cuts_of_resnet32_in_four_are_even() -> None:
    assert starts("infopro", 4, R32) == starts("even", 4, R32) == (4, 8, 12)


def last_layers(cuts: str, blocks: int, depth: int) -> list[str]:
    network = models.build("resnet", {"depth": depth}, (3, 32, 32), 10)
    split = SplitConfig(blocks=blocks, cuts=cuts)
    first = cut_starts(split, len(network.layers), network.num_stem, network.num_head)
    return [network.layers[index - 1].name for index in first]


@pytest.mark.parametrize(
    ("cuts", "blocks", "depth", "expected"),
    [
        ("infopro", 2, 110, ["stage2_8"]),
        ("infopro", 4, 110, ["stage1_11", "stage2_7", "stage3_3"]),
        ("infopro-memory", 4, 110, ["stage1_6", "stage1_14", "stage2_8"]),
        ("contsup", 4, 32, ["stage1_2", "stage1_4", "stage2_2"]),
    ],
)
def test_a_block_ends_with_the_layer_that_the_paper_names(
    cuts: str, blocks: int, depth: int, expected: list[str]
) -> None:
    assert last_layers(cuts, blocks, depth) == expected


def test_all_cuts_of_papers_ascend_within_their_network() -> None:
    for name, table in NAMED_CUTS.items():
        for per_stage, blocks in table:
            found = starts(name, blocks, 3 * per_stage + 2)
            assert len(found) == blocks - 1
            assert all(a < b for a, b in itertools.pairwise([0, *found, 3 * per_stage + 1]))


def test_cuts_that_a_paper_has_not_are_refused() -> None:
    with pytest.raises(ModelError, match=r"17 layers.*depth 32 in 2, 32 in 4, 32 in 8: take one"):
        starts("contsup", 4, 19)


def test_balanced_cuts_must_be_written_out() -> None:
    with pytest.raises(ModelError, match=r"plan RECIPE --write.*model\.name = .module:function"):
        starts("balanced", 4, R110)
