"""AugLocal: the blocks' auxiliary networks in a network that is cut."""

from __future__ import annotations

import pytest

from ppll.blocks.blueprint import build_method
from ppll.errors import RecipeError
from tests.faults import recipe
from tests.interleaving import MadeUpBatches, blueprint_of, small_recipe


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        # Of ResNet-14 in four blocks; behind the blocks lie five, three and two residual layers.
        (1, [["stage3_1"]] * 3),
        (
            4,
            [
                ["stage1_1", "stage2_1", "stage3_0", "stage3_1"],
                ["stage2_1", "stage3_0", "stage3_1"],
                ["stage3_0", "stage3_1"],
            ],
        ),
    ],
)
def test_later_layers_are_picked_behind_every_block(depth: int, expected: list[list[str]]) -> None:
    base = small_recipe("resnet", "auglocal").with_settings(
        [f"method.auxiliary_options.depth={depth}"]
    )
    blueprint = blueprint_of(base, MadeUpBatches())
    heads = [blueprint.outline(i).auxiliary for i in range(3)]
    found = [[name for name, _ in head.get_submodule("layers").named_children()] for head in heads]
    assert found == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("method.depth=2", "unknown option of method 'auglocal' 'method.depth'"),
        ("method.lag=2", "unknown option of method 'auglocal' 'method.lag'"),
    ],
)
def test_options_that_cannot_be_are_refused(setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_method(recipe().with_settings(["method.name=auglocal", setting]))
