"""Costs as they are measured: what must be true of them on any machine."""

from __future__ import annotations

import pytest
import torch

from ppll.blocks.blueprint import build_method
from ppll.errors import RecipeError
from ppll.methods import BlockSite
from ppll.methods.sgr import GRADIENT, SGR
from ppll.planning.costs import Costs
from ppll.planning.measuring import _at_none, measure
from ppll.planning.plan import draw_plan
from ppll.simulation.simulate import Link
from tests.faults import recipe


def measured(*settings: str) -> Costs:
    return measure(recipe().with_settings(settings), repeats=2)


def test_every_layer_and_every_exit_is_measured() -> None:
    costs = measured()
    names = [layer.name for layer in costs.layers]
    assert (names[0], names[-1], len(names)) == ("stem", "head", 8)
    assert (costs.num_stem, costs.num_head, costs.message_size) == (1, 1, 10)
    for layer in costs.layers:
        assert min(layer.forward_s, layer.backward_s, layer.backward_first_s) > 0
        assert layer.backward_first_s <= layer.backward_s
    assert all(behind.forward_s > 0 < behind.backward_s for behind in costs.exits)


def test_sizes_are_those_of_the_tensors() -> None:
    costs = measured()
    layers = {layer.name: layer for layer in costs.layers}
    assert layers["stage1_0"].features_bytes == 10 * 8 * 8 * 8 * 4
    assert layers["head"].features_bytes == 10 * 3 * 4
    assert layers["head"].parameter_bytes == (32 * 3 + 3) * 4
    site = BlockSite(0, 2, (1, 8, 8), (8, 8, 8), 3)
    auxiliary = build_method(recipe()).build_auxiliary(site)
    expected = sum(p.nbytes for p in auxiliary.parameters())
    assert costs.exits[1].parameter_bytes == expected
    assert costs.exits[-1].parameter_bytes == 0
    # A residual layer keeps its input, two convolutions' outputs and their norms', at least.
    assert layers["stage1_0"].activation_bytes > 3 * layers["stage1_0"].features_bytes


def test_parts_of_a_batch_are_measured_as_they_travel() -> None:
    assert measured("train.accumulate=5").message_size == 2


@pytest.mark.parametrize(
    ("model", "main", "beside"),
    [
        ("masked_model", 6 * 64 * 4, 64),
        # The first four tokens, a mask and a count.
        ("dict_model", 64 * 8 * 4, 4 * 8 * 4 + 64 + 8),
    ],
)
def test_layers_may_hand_on_several_tensors(model: str, main: int, beside: int) -> None:
    settings = [f"model={{name='tests.structures:{model}'}}", "split.cuts=balanced"]
    costs = measured(*settings)
    assert costs.layers[2].features_bytes == 10 * (main + beside)
    assert costs.layers[-1].features_bytes == 10 * 3 * 4
    assert all(min(x.forward_s, x.backward_first_s, x.backward_s) > 0 for x in costs.layers)
    halved = measured(*settings, "split.features_dtype=bf16")
    assert halved.layers[2].features_bytes == 10 * (main + beside)
    assert halved.layers[2].sent_bytes == 10 * (main // 2 + beside + 8)  # and a target
    assert len(draw_plan(recipe().with_settings(settings), costs, 4, Link()).blocks) == 4


def test_measuring_needs_no_resolved_cuts_and_makes_them() -> None:
    base = recipe().with_settings(["split.cuts=balanced"])
    plan = draw_plan(base, measure(base, repeats=1), 4, Link())
    assert len(plan.blocks) == 4
    assert isinstance(plan.recipe.split.cuts, tuple)


def test_a_loss_with_weights_is_measured_in_the_precision_of_training() -> None:
    loss = ["loss.name=torch.nn:CrossEntropyLoss", "loss.options.weight=[1, 1, 2]"]
    assert measured(*loss, "train.precision=bf16").exits[-1].forward_s > 0


def test_a_loss_that_does_not_work_is_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"'torch.nn:CrossEntropyLoss' fails on made-up predictions"
    ):
        measured("loss.name=torch.nn:CrossEntropyLoss", "loss.options.weight=[1]")


def test_activations_that_are_computed_again_are_refused() -> None:
    """Neither the forward that is made again nor the memory that it saves is measured."""
    with pytest.raises(RecipeError, match=r"train\.activation_checkpointing: .* set it to false"):
        measured("train.activation_checkpointing=true")


def test_measuring_leaves_the_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    measured()
    assert torch.equal(torch.rand(1), expected)


def test_options_of_a_method_do_not_stand_in_the_way() -> None:
    assert measured("method.auxiliary=linear").block_s > 0
    assert measured("method.name=man", "method.lag=3").exits[1].parameter_bytes > 0


def test_what_does_not_shrink_with_the_samples_is_known() -> None:
    """Of messages of ten samples two are measured, too; of two, nothing smaller is."""
    costs = measured()
    assert 0 < costs.fixed_share < 1
    for piece in [*costs.layers, *costs.exits]:
        assert 0 <= piece.forward_fixed_s <= piece.forward_s
        assert 0 <= piece.backward_fixed_s <= piece.backward_s
    assert measured("train.accumulate=5").fixed_share == 0


def test_the_largest_messages_are_measured() -> None:
    assert measured("train.replicas=[2, 1, 1, 2]").message_size == 10
    assert measured("train.replicas=2").message_size == 5


def test_a_line_through_two_sizes() -> None:
    assert _at_none([5.0], [2.0], 0.25) == 1.0
    assert _at_none([4.0], [0.5], 0.25) == 0.0  # Fewer cannot be faster than in proportion.
    assert _at_none([4.0], [4.5], 0.25) == 4.0
    assert _at_none([4.0], [4.0], 1) == 0.0


@pytest.mark.parametrize(
    ("settings", "beside", "late", "carried"),
    [
        ([], 0, 0, 0),
        (["method.name=infopro"], 8 * 8, 0, 0),  # the image, a byte a value
        (["method.name=sgr"], 0, 8 * 8 * 8 * 4, 0),  # a gradient
        (["method.name=contsup", "method.context=R1"], 0, 0, 8 * 8 * 8 * 4),
        (["data.mixup=0.2"], 8 + 4, 0, 0),
    ],
)
def test_what_is_sent_is_what_travels(
    settings: list[str], beside: int, late: int, carried: int
) -> None:
    """Of a layer with 8 maps of 8 x 8, for each of ten samples; a target has 8 bytes."""
    layer = measured(*settings).layers[1]
    assert layer.features_bytes == 10 * 8 * 8 * 8 * 4
    assert layer.sent_bytes == layer.features_bytes + 10 * (8 + beside + late)
    assert layer.carried_bytes == 10 * carried


class Sees(SGR):
    """Sends a number that it makes of the next block's first layer."""

    def late_shapes(self, site: BlockSite) -> dict[str, tuple[int, ...]]:
        return {GRADIENT: (len([*site.layers_behind[0].module.parameters()]),)}


def test_a_second_part_is_asked_for_at_cuts_alone() -> None:
    """Behind the last layer nothing is sent, and there is no layer that a method could see."""
    layers = measured(f"method.name={__name__}:Sees").layers
    assert layers[-2].leaving_bytes == layers[-2].features_bytes + 10 * (8 + 2 * 4)
    assert layers[-1].leaving_bytes == layers[-1].features_bytes


def test_rivals_send_features_as_they_are_computed() -> None:
    """What the recipe says of a cut says nothing of theirs."""
    layer = measured("split.features_dtype=int8").layers[1]
    assert layer.features_bytes == 10 * 8 * 8 * 8 * 4
    assert layer.sent_bytes == 10 * (8 * (8 * 8 + 4) + 8)
