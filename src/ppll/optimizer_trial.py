"""A few updates by an optimizer of the user's own, before anything is started."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn, optim

from ppll.blocks.blueprint import Blueprint
from ppll.blocks.optimization import build_optimizer, named_state, restore_state
from ppll.checkpoints.first_values import first_values
from ppll.devices import device_of
from ppll.errors import RecipeError
from ppll.numerics import own_generator
from ppll.own_class import blamed_on

__all__ = ["try_optimizer"]

_NUM_UPDATES: Final = 6
"""Before its state is saved, and after; some change what they do every fifth or sixth time."""
_SEED: Final = 0

Parameters = Sequence[tuple[str, nn.Parameter]]


def try_optimizer(blueprint: Blueprint) -> None:
    """Let an optimizer of the user's own make updates of every block on the CPU, and go on from
    what a checkpoint would hold of it, which must come to the same values.

    Blocks are built one after the other and thrown away, gradients are made up, and the state of
    the generator is restored. Optimizers of the shelf are not tried, nor is one that is to run on
    a GPU, which may do there what it cannot on the CPU.

    Args:
        blueprint: The network cut into blocks; its own values are not changed.

    Raises:
        RecipeError: It raises something, or a resumed run would not be the same.
    """
    recipe = blueprint.recipe
    if not recipe.optimizer.is_own or device_of(recipe.runtime, 0).type != "cpu":
        return
    with own_generator():
        for index in range(blueprint.num_blocks):
            _try_on(blueprint, index)


def _try_on(blueprint: Blueprint, index: int) -> None:
    config, seed = blueprint.rules.optimizer, blueprint.recipe.train.seed
    modules = blueprint.build_modules(index, torch.device("cpu"))
    given, values = blueprint.network.held_values(), dict[str, Tensor]()
    for prefix, module in modules.named():
        values |= first_values(prefix, module, given, seed)
    modules.load(values)
    roots = nn.ModuleList(module for _, module in modules.named())
    if not _parameters(roots):  # That is refused in other words.
        return
    optimizer = build_optimizer(config, index, roots)
    before = _numbers(optimizer)
    with blamed_on("optimizer.name", config.name, type(optimizer), f"on block {index}"):
        _update(optimizer, _parameters(roots))
        twin = copy.deepcopy(roots)
        restored = build_optimizer(config, index, twin)
        state = dict(named_state(optimizer, _parameters(roots)))
        restore_state(restored, _parameters(twin), {k: v.clone() for k, v in state.items()})
        same = _goes_on(restored, twin)
    _update(optimizer, _parameters(roots))
    pairs = zip(_parameters(roots), _parameters(twin), strict=True)
    if not same or not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for (_, a), (_, b) in pairs):
        raise RecipeError(_not_saved(config.name, optimizer, before))


def _goes_on(optimizer: optim.Optimizer, module: nn.Module) -> bool:
    """Whether it can make updates with the state that was given back to it."""
    try:
        _update(optimizer, _parameters(module))
    except Exception:  # Without what was not saved it may stumble over anything.
        return False
    return True


def _parameters(module: nn.Module) -> Parameters:
    return [(n, p) for n, p in module.named_parameters() if p.requires_grad]


def _update(optimizer: optim.Optimizer, parameters: Parameters) -> None:
    """Make updates with the same gradients and random state every time.

    In the first, the last of several parameters has no gradient, as one that a loss does not reach.
    """
    torch.default_generator.manual_seed(_SEED)
    for update in range(_NUM_UPDATES):
        for _, parameter in parameters:
            parameter.grad = torch.randn_like(parameter) * 0.01
        if update == 0 and len(parameters) > 1:
            parameters[-1][1].grad = None
        optimizer.step()


def _numbers(optimizer: optim.Optimizer) -> list[Mapping[str, Any]]:
    """What the groups of parameters say besides the parameters."""
    return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


def _not_saved(name: str, optimizer: optim.Optimizer, before: list[Mapping[str, Any]]) -> str:
    found = [*_in_state(optimizer), *_in_groups(optimizer, before)]
    where = f" Found besides: {', '.join(sorted(set(found)))}." if found else ""
    return (
        f"optimizer.name = {name!r} does not go on alike from its saved state, so a resumed run "
        f"would differ. A checkpoint holds tensors that stand in state[parameter], nothing else: "
        f"keep there all that changes.{where}"
    )


def _in_state(optimizer: optim.Optimizer) -> Iterator[str]:
    for state in optimizer.state.values():
        yield from (
            f"state[parameter][{key!r}], {type(value).__name__}"
            for key, value in state.items()
            if not isinstance(value, Tensor)
        )


def _in_groups(optimizer: optim.Optimizer, before: list[Mapping[str, Any]]) -> Iterator[str]:
    for group, old in zip(optimizer.param_groups, before, strict=True):
        yield from (
            f"param_groups[...][{key!r}], which changes"
            for key, value in group.items()
            if key != "params" and (key not in old or old[key] is not value)
        )
