"""Activations that are computed again: the same bits, and gone in between."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn

from ppll.config import Recipe
from ppll.errors import RecipeError
from ppll.message import Kind, Message
from tests.interleaving import (
    MadeUpBatches,
    MadeUpText,
    blueprint_of,
    built_blocks,
    small_recipe,
    train_interleaved,
)
from tests.test_block import WIDTH, batch, learn, make_blocks

CHECKPOINTING = "train.activation_checkpointing=true"


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"network": "resnet", "method": "dgl"}, marks=pytest.mark.slow),
        {"network": "resnet", "method": "backprop"},
        {"network": "resnet", "method": "contsup", "precision": "bf16"},
        pytest.param({"network": "resnet", "method": "sgr"}, marks=pytest.mark.slow),
        {"network": "vit", "method": "sgr", "precision": "bf16"},
        {"network": "resnet", "method": "man", "accumulate": 2},
        pytest.param(
            {"network": "vit", "method": "auglocal", "optimizer": "adamw"}, marks=pytest.mark.slow
        ),
        {"network": "gpt-rotary", "method": "dgl", "optimizer": "adamw"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_the_bits_are_those_of_keeping_all(settings: dict[str, Any]) -> None:
    recipe = small_recipe(**settings)
    batches = MadeUpText() if "gpt" in settings["network"] else MadeUpBatches()
    kept = train_interleaved(recipe, 1, batches=batches)
    stages = 1 if settings["method"] == "backprop" else 2
    again = train_interleaved(recipe.with_settings([CHECKPOINTING]), stages, batches=batches)
    for one, other in zip(kept, again, strict=True):
        others = dict(other.modules.named_tensors())
        for name, tensor in one.modules.named_tensors():
            assert torch.equal(tensor, others[name]), name


class Centred(nn.Module):
    """Centres its input (N, D) on the mean that it remembers, and remembers this batch's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.register_buffer("mean", torch.zeros(width))
        self.mean: torch.Tensor

    def reset_parameters(self) -> None:
        self.mean.zero_()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        made = self.linear(rows - self.mean).tanh()
        if self.training:
            self.mean.lerp_(rows.detach().mean(0), 0.5)
        return made


class Counted(nn.Module):
    """Weighs its output (N, D) by how many batches it has seen, in a buffer that it assigns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.register_buffer("seen", torch.zeros(()))
        self.seen: torch.Tensor

    def reset_parameters(self) -> None:
        self.seen.zero_()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen = self.seen + 1
        return self.linear(rows).tanh() * self.seen


@pytest.mark.parametrize("layer", [Centred, Counted])
def test_a_layer_begins_from_the_same_buffers_again_and_changes_them_once(
    layer: type[nn.Module],
) -> None:
    both = []
    for again in (False, True):
        [block, _] = make_blocks(layer(WIDTH), activation_checkpointing=again)
        for step in (1, 2, 3):
            learn(block, batch(step=step))
        both.append(dict(block.modules.named_tensors()))
    kept, computed_again = both
    for name, tensor in kept.items():
        assert torch.equal(tensor, computed_again[name]), name


@pytest.mark.parametrize("settings", [[], [CHECKPOINTING]], ids=["kept", "again"])
def test_what_lies_within_a_layer_is_gone_until_the_block_learns(settings: list[str]) -> None:
    batches = MadeUpBatches((6,))
    block = built_blocks(blueprint_of(small_recipe().with_settings(settings), batches))[0]
    seen: list[weakref.ref[torch.Tensor]] = []
    inner = block.modules.layers[1].module.get_submodule("conv1")
    inner.register_forward_hook(lambda module, inputs, output: seen.append(weakref.ref(output)))
    tensors = dict(batches.train_batch(0, 0))
    block.forward(Message(kind=Kind.TRAIN, sequence=0, step=1, tensors=tensors))
    is_kept = seen[0]() is not None
    block.learn()
    assert (is_kept, len(seen)) == ((False, 2) if settings else (True, 1))


def test_evaluation_computes_nothing_again() -> None:
    batches = MadeUpBatches((6,))
    block = built_blocks(blueprint_of(small_recipe().with_settings([CHECKPOINTING]), batches))[0]
    calls: list[object] = []
    block.modules.layers[0].module.register_forward_hook(lambda *call: calls.append(call))
    tensors = dict(batches.train_batch(0, 0))
    block.forward(Message(kind=Kind.EVALUATE, sequence=0, step=0, split="test", tensors=tensors))
    block.evaluate()
    assert len(calls) == 1


def test_compiled_blocks_decide_for_themselves() -> None:
    with pytest.raises(RecipeError, match=r"set it to false, or train\.activation_checkpointing"):
        Recipe().with_settings([CHECKPOINTING, "train.compile=true"])
