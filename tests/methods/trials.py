"""Trials of one method with options: a step of every block, and the same bits on any placement."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ppll.blocks.block import Block
from ppll.config import Recipe
from ppll.message import Kind, Message
from ppll.methods import Lesson, LocalLoss, Method, methods
from ppll.models import initialise
from ppll.site import BlockSite
from tests.interleaving import (
    MadeUpBatches,
    blueprint_of,
    built_blocks,
    digest,
    small_recipe,
    train_interleaved,
)


def recipe_with(method: str, network: str, *settings: str) -> Recipe:
    """A small recipe with options of its method, such as ``"beta=0.5"``."""
    return small_recipe(network, method).with_settings([f"method.{s}" for s in settings])


def blocks_after_a_step(recipe: Recipe) -> list[Block]:
    """All blocks after one training batch; every parameter of each has a gradient."""
    blocks = built_blocks(blueprint_of(recipe, MadeUpBatches()))
    before = [digest([block]) for block in blocks]
    message = Message(
        kind=Kind.TRAIN, sequence=0, step=1, tensors=MadeUpBatches().train_batch(0, 0)
    )
    for block in blocks:
        message = block.forward(message)
        block.learn()
    assert all(
        p.grad is not None and bool(p.grad.isfinite().all())
        for block in blocks
        for _, p in block.modules.named_parameters()
    )
    assert all(digest([block]) != old for block, old in zip(blocks, before, strict=True))
    return blocks


def same_bits_everywhere(recipe: Recipe) -> bool:
    """Whether one, two and four stages end with the same values, their channels poisoned."""
    return len({digest(train_interleaved(recipe, stages)) for stages in (1, 2, 4)}) == 1


def loss_of_one(
    method: Method, site: BlockSite, fields: Mapping[str, Tensor], targets: Tensor
) -> tuple[torch.nn.Module, Tensor, LocalLoss]:
    """A block's auxiliary network with first values, features made up, and their loss."""
    auxiliary = method.build_auxiliary(site)
    initialise(auxiliary, "auxiliary.x", seed=1)
    features = torch.randn(len(targets), *site.feature_shape)
    lesson = Lesson(features, features, targets, fields)
    return auxiliary, features, method.local_loss(auxiliary, lesson, _cross_entropy)


def built(name: str, **options: object) -> Method:
    return methods.build(name, options)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, targets)
