"""The first training message through a method of the user's own, before anything is started."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from ppll.blocks.block import Block, NonFiniteLoss
from ppll.blocks.blueprint import Blueprint
from ppll.checkpoints.first_values import first_values
from ppll.config import Recipe
from ppll.data import Loader, PreparedData
from ppll.devices import device_of
from ppll.errors import RecipeError
from ppll.message import MIX, OTHER_TARGETS, Kind, Message
from ppll.methods.base import Method, late_shapes_of
from ppll.numerics import own_generator
from ppll.own_class import is_own_class
from ppll.own_method import blamed

__all__ = ["try_method"]


def try_method(blueprint: Blueprint, data: PreparedData) -> None:
    """Let a method of the user's own learn from one message, and evaluate it, in every block.

    Blocks are built one after the other and thrown away; nothing is updated, and the state of the
    generator is restored. A method that changes numbers of its own then does the same once more.
    Methods of the shelf are not tried. Nor is one that is to run on a GPU: what it computes there
    may not exist on the CPU, and the calling process needs no context.

    Args:
        blueprint: The network cut into blocks; its own values are not changed.
        data: What the first message is made of.

    Raises:
        RecipeError: It raises something; the place in its module is named. Or a loss is not
            finite, which would stop the run at its first step. Or numbers of its own go on
            changing.
        ModelError: What it returns is of no use.
    """
    recipe = blueprint.recipe
    if not is_own_class(recipe.method.name) or device_of(recipe.runtime, 0).type != "cpu":
        return
    blueprint = dataclasses.replace(blueprint, recipe=recipe.with_settings(_settings(recipe)))
    before = _numbers(blueprint.method)
    _let_learn(blueprint, data)
    first = _numbers(blueprint.method)
    if first != before:  # What is set once stays as it is; a counter goes on.
        _let_learn(blueprint, data)
        _refuse_state(recipe.method.name, first, _numbers(blueprint.method))


def _let_learn(blueprint: Blueprint, data: PreparedData) -> None:
    """The first message through blocks that are new, whatever they learned before."""
    train, evaluate = _messages(blueprint, data)
    late: dict[str, Tensor] = {}
    name, method = blueprint.recipe.method.name, blueprint.method
    with own_generator():
        for index in range(blueprint.num_blocks):
            block = _first_block(blueprint, index)
            with blamed(name, method, f"in block {index} on the first batch"):
                train = block.forward(train)
                late = _learn(block, late, _slow(blueprint, block))
                late_shapes_of(block.method, block.site)
                evaluate = block.forward(evaluate)
                block.evaluate()


def _numbers(method: Method) -> dict[str, str]:
    """What it says of itself that may count something; a truth value does not."""
    kinds = reversed(type(method).__mro__)
    said = {key: value for kind in kinds for key, value in vars(kind).items()} | vars(method)
    numbers = {key: v for key, v in said.items() if isinstance(v, int | float | Tensor)}
    return {key: repr(v) for key, v in numbers.items() if not isinstance(v, bool)}


def _refuse_state(name: str, first: Mapping[str, str], second: Mapping[str, str]) -> None:
    """Blocks of one process have one method, those of others and a resumed run begin anew."""
    if changed := [key for key, value in second.items() if first.get(key, value) != value]:
        raise RecipeError(
            f"method.name = {name!r} changes {', '.join(changed)} of itself while it learns, which "
            f"no checkpoint holds and blocks of other processes do not see: keep what changes in "
            f"a buffer of the auxiliary network."
        )


def _settings(recipe: Recipe) -> list[str]:
    """A trial is of the method alone, and stops at what the run's first step would stop at.

    With values of a file, which are not read yet, the run's losses are others.
    """
    stops = recipe.train.on_nonfinite == "stop" and recipe.model.weights is None
    return ["train.compile=false", *([] if stops else ["train.on_nonfinite=ignore"])]


def _learn(block: Block, late: Mapping[str, Tensor], slow: Tensor | None) -> dict[str, Tensor]:
    try:
        return block.learn(late, slow)
    except NonFiniteLoss as error:
        raise RecipeError(str(error)) from error


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
    """First values of what the method reads of a later layer."""
    if block.method.slow_from is None or block.site.is_last:
        return None
    reads_last = block.method.slow_from == "last"
    later = blueprint.num_blocks - 1 if reads_last else block.index + 1
    return _first_block(blueprint, later).published_parameters()
