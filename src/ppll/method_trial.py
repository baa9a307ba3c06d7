"""The first training message through a method of the user's own, before anything is started."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ppll.blocks.block import Block
from ppll.blocks.blueprint import Blueprint
from ppll.checkpoints.first_values import first_values
from ppll.data import Loader, PreparedData
from ppll.devices import device_of
from ppll.message import MIX, OTHER_TARGETS, Kind, Message
from ppll.numerics import own_generator
from ppll.own_class import is_own_class
from ppll.own_method import blamed

__all__ = ["try_method"]

_SETTINGS = ("train.compile=false", "train.on_nonfinite=ignore")
"""A trial is of the method alone, and first values may well lead to a loss that is not finite."""


def try_method(blueprint: Blueprint, data: PreparedData) -> None:
    """Let a method of the user's own learn from one message, and evaluate it, in every block.

    Blocks are built one after the other and thrown away; nothing is updated, and the state of the
    generator is restored. Methods of the shelf are not tried. Nor is one that is to run on a GPU:
    what it computes there may not exist on the CPU, and the calling process needs no context.

    Args:
        blueprint: The network cut into blocks; its own values are not changed.
        data: What the first message is made of.

    Raises:
        RecipeError: It raises something; the place in its module is named.
        ModelError: What it returns is of no use.
    """
    recipe = blueprint.recipe
    if not is_own_class(recipe.method.name) or device_of(recipe.runtime, 0).type != "cpu":
        return
    blueprint = dataclasses.replace(blueprint, recipe=recipe.with_settings(_SETTINGS))
    train, evaluate = _messages(blueprint, data)
    late: dict[str, Tensor] = {}
    with own_generator():
        for index in range(blueprint.num_blocks):
            block = _first_block(blueprint, index)
            with blamed(
                recipe.method.name, blueprint.method, f"in block {index} on the first batch"
            ):
                train = block.forward(train)
                late = block.learn(late, _slow(blueprint, block))
                evaluate = block.forward(evaluate)
                block.evaluate()


def _messages(blueprint: Blueprint, data: PreparedData) -> tuple[Message, Message]:
    """The first message to learn from, without the update at the end, and the same to evaluate."""
    method, recipe = blueprint.method, blueprint.recipe
    batch = Loader(data, seed=recipe.train.seed, fields=method.fields).train_batch(0, 0)
    tensors = {name: tensor[: recipe.message_size].clone() for name, tensor in batch.items()}
    train = Message(kind=Kind.TRAIN, sequence=0, step=1, num_parts=2, tensors=tensors)
    evaluate = dataclasses.replace(train, kind=Kind.EVALUATE, sequence=1)
    return train, evaluate.without((MIX, OTHER_TARGETS))


def _first_block(blueprint: Blueprint, index: int) -> Block:
    block = blueprint.build_block(index, torch.device("cpu"))
    given, values = blueprint.network.held_values(), dict[str, Tensor]()
    for prefix, module in block.modules.named():
        values |= first_values(prefix, module, given, blueprint.recipe.train.seed)
    block.modules.load(values)
    return block


def _slow(blueprint: Blueprint, block: Block) -> Tensor | None:
    """As many parameters of a later layer as the method asks for."""
    if block.method.slow_from is None or block.site.is_last:
        return None
    layer = blueprint.layer_read_by(block.index)
    return torch.zeros(sum(p.numel() for p in layer.module.parameters()))
