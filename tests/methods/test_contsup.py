"""ContSup: which context reaches which block, who learns it, and what travels for it."""

from __future__ import annotations

import pytest
import torch

from ppll.auxiliary.context import Context
from ppll.errors import ModelError, RecipeError
from ppll.message import Kind, Message
from ppll.site import BlockSite
from tests.interleaving import NETWORKS, MadeUpBatches, blueprint_of, built_blocks
from tests.methods.trials import blocks_after_a_step, built, recipe_with, same_bits_everywhere
from tests.thinning import slow_but

every_network = pytest.mark.parametrize("network", NETWORKS)
every_context = pytest.mark.parametrize("context", ["E", "R1", "R1E"])


@pytest.mark.parametrize(
    ("context", "fields", "carries_input"),
    [("E", ("image",), False), ("R1", (), True), ("R1E", ("image",), True)],
)
def test_only_what_is_read_travels(
    context: str, fields: tuple[str, ...], carries_input: bool
) -> None:
    method = built("contsup", context=context)
    assert method.fields == fields
    assert method.carries_input is carries_input


@every_network
@pytest.mark.parametrize(
    ("context", "read"),
    [
        ("E", [{"image"}, {"image"}, {"image"}]),
        ("R1", [{"previous"}] * 3),
        ("R1E", [{"image"}, *[{"image", "previous"}] * 2]),
    ],
)
def test_every_block_but_the_first_has_its_context(
    context: str, read: list[set[str]], network: str
) -> None:
    first, *others = blocks_after_a_step(recipe_with("contsup", network, f"context={context}"))
    assert first.modules.context is None
    contexts = [block.modules.context for block in others]
    assert all(isinstance(c, Context) for c in contexts)
    assert [set(c.encoders) for c in contexts if isinstance(c, Context)] == read


def test_the_context_is_added_to_the_input() -> None:
    recipe = recipe_with("contsup", "resnet")
    blocks = built_blocks(blueprint_of(recipe, MadeUpBatches()))
    tensors = MadeUpBatches().train_batch(0, 0)
    message = Message(kind=Kind.EVALUATE, sequence=0, step=1, tensors=tensors)
    features = blocks[0].forward(message).features
    modules = blocks[1].forward(message.with_tensors(features=features))
    context = blocks[1].modules.context
    assert context is not None
    with torch.no_grad():
        expected = features + context(tensors)
        for layer in blocks[1].modules.layers:
            expected = layer.module(expected)
    torch.testing.assert_close(modules.features, expected)


@pytest.mark.parametrize("network", slow_but(["resnet"], NETWORKS))
@every_context
def test_the_same_bits_on_every_placement(context: str, network: str) -> None:
    assert same_bits_everywhere(recipe_with("contsup", network, f"context={context}"))


def test_contrast_is_an_objective_here_too() -> None:
    blocks_after_a_step(recipe_with("contsup", "resnet", "objective=contrast"))


def test_data_that_are_no_images_are_refused() -> None:
    site = BlockSite(1, 4, (20,), (12,), 10, (12,))
    with pytest.raises(ModelError, match=r"encodes images .* set method.context = 'R1'"):
        built("contsup").build_context(site)


def test_an_unknown_context_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"method.context"):
        built("contsup", context="R2")
