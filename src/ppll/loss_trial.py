"""A loss of the user's own on made-up predictions, before anything is started."""

from __future__ import annotations

from typing import Final, TypeGuard

import torch
from torch import Tensor, nn

from ppll.blocks.blueprint import Blueprint
from ppll.devices import device_of
from ppll.errors import RecipeError
from ppll.numerics import autocast_dtype, own_generator
from ppll.own_class import blamed_on
from ppll.task_loss import build_own_loss

__all__ = ["try_loss"]

_NUM_SAMPLES: Final = 4
_CLOSE: Final = 1e-2
"""How far, as a share, the losses of equal batches may lie apart, which are summed otherwise."""
_FAR: Final = 100
"""How many times as large other predictions are that are to have another loss."""
_REMEDIES: Final = {
    False: "Mend it or its options; values to predict are targets in floating point.",
    True: "Mend it or its options; class indices are targets in whole numbers.",
}
"""What to do about one that fails, by whether the data has values to predict."""


def try_loss(blueprint: Blueprint) -> None:
    """Let a loss of the user's own judge made-up predictions of the run's length and type.

    Losses of the shelf are not tried, nor is one that is to run on a GPU, which may do there what
    it cannot on the CPU. The state of the generator is restored.

    Raises:
        RecipeError: It raises something, returns no mean or one that depends on no prediction,
            keeps a state, or changes its targets.
    """
    recipe = blueprint.recipe
    if not recipe.loss.is_own or device_of(recipe.runtime, 0).type != "cpu":
        return
    loss = build_own_loss(recipe)
    before = _state(loss)
    are_values, dtype = blueprint.facts.predicts_values, autocast_dtype(recipe.train)
    shape = (_NUM_SAMPLES, blueprint.sites[-1].num_classes)
    with own_generator(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        logits = torch.randn(shape, dtype=dtype or torch.float32, requires_grad=True)
        other = _FAR * torch.randn(shape, dtype=logits.dtype)
        targets = _targets(shape, are_values=are_values)
        given = f"{'values' if are_values else 'class indices'} of shape {tuple(targets.shape)}"
        where = f"on made-up predictions of shape {shape} and {given}"
        with blamed_on("loss.name", recipe.loss.name, type(loss), where, _REMEDIES[are_values]):
            once: object = loss(logits, targets)
            again: object = loss(logits, targets)
            twice: object = loss(torch.cat([logits, logits]), torch.cat([targets, targets]))
            far: object = loss(other, targets)
    problem = _in_place(targets) or _problem(once, again, twice, far)
    if problem := problem or _changed(before, _state(loss)):
        raise RecipeError(f"loss.name = {recipe.loss.name!r} {problem}")


def _targets(shape: tuple[int, ...], *, are_values: bool) -> Tensor:
    """For logits of that shape: values from 0 to 1, as some losses ask for, or classes."""
    if are_values:
        return torch.rand(shape, dtype=torch.float32)
    return torch.randint(shape[1], shape[:1])


def _in_place(targets: Tensor) -> str | None:
    if targets._version:
        return "changes its targets in place: let it change a copy, targets.clone()."
    return None


def _problem(once: object, again: object, twice: object, far: object) -> str | None:
    """What is wrong with the losses of a batch, of the same, of one that holds it twice, and of
    predictions that lie elsewhere, in words."""
    if not (_is_number(once) and _is_number(again) and _is_number(twice)):
        found = f"shape {tuple(once.shape)}" if isinstance(once, Tensor) else repr(once)
        return f"returned {found:.80}: return a tensor that is one number, the mean of the batch."
    if not once.requires_grad:
        return "returned what has no gradient: compute it from the logits, without detach()."
    if not torch.isclose(once, again, rtol=0, atol=0, equal_nan=True):
        return (
            f"returned {once.item():.4g} and {again.item():.4g} for the same batch, but what a "
            f"loss is may depend on its arguments alone: let it draw nothing and keep no state."
        )
    if not torch.isclose(once, twice, rtol=_CLOSE, atol=_CLOSE, equal_nan=True):
        return (
            f"returned {once.item():.4g} for a batch and {twice.item():.4g} for one that holds it "
            f"twice, but a batch may come in parts and shards: return the mean of its samples."
        )
    if _is_number(far) and torch.equal(once, far):
        return (
            "returned the same number whatever was predicted, as cross-entropy does of one output, "
            "so nothing would be learned: take another, such as 'torch.nn:BCEWithLogitsLoss' of "
            "values 0 and 1."
        )
    return None


def _is_number(found: object) -> TypeGuard[Tensor]:
    return isinstance(found, Tensor) and not found.dim()


def _state(loss: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in loss.named_buffers()}


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> str | None:
    """Which buffers have changed, in words."""
    same = {n for n in before.keys() & after.keys() if torch.equal(before[n], after[n])}
    if names := sorted((before.keys() | after.keys()) - same):
        return (
            f"changes its buffers ({', '.join(names)}), which no checkpoint holds: what a loss is "
            f"may depend on its arguments alone."
        )
    return None
