"""What may change between two starts of one run (no torch).

A run may go on under another placement, in other folders, and longer where its schedule does not
know its end. Everything else that stands in a recipe's training sections would make it another
run, so it must be allowed by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ppll.config import Recipe
from ppll.errors import RecipeError, unknown_name

__all__ = ["LAYERS", "Change", "Tree", "as_saved", "changes", "refuse_changes", "same_validation"]
__all__ += ["training_sections"]

LAYERS: Final = "model.layers"
"""What a change of the network itself is called, which no key of a recipe tells of."""
_SECTIONS: Final = (
    *("data", "model", "split", "method", "loss"),
    *("optimizer", "schedule", "train"),
)
_FREE: Final = frozenset({"data.root", "data.eval_batch_size", "train.evaluate_every"})
_LENGTH: Final = frozenset({"train.epochs", "train.max_steps"})
_OF_OTHERS: Final = frozenset(
    f"data.{key}"
    for key in (
        *("batch_size", "drop_last", "crop", "flip", "randaugment", "randaugment_ops", "cutout"),
        *("mixup", "cutmix", "test_limit"),
    )
)
"""Keys of the data that the validation part does not depend on."""

_READS_ONLY: Final = {"replicas": 1, "accumulate": 1, "compile": False, "cuda_graphs": False}
"""What ``train`` asks for where nothing is learned."""

Tree = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Change:
    """A key that another value would train something else by.

    Attributes:
        key: ``SECTION.KEY``.
        before: What the run was trained by; none where it was not given.
        now: What the recipe says.
    """

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} (was {self.before!r}, is {self.now!r})"


def training_sections(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The part of a recipe that changes the result, ready for JSON."""
    tree = recipe.model_dump(mode="json")
    return {section: tree[section] for section in _SECTIONS}


def as_saved(recipe: Recipe, saved: Tree) -> Recipe:
    """A run's recipe with what its checkpoint was trained by; the run may have changed since.

    The data stays, which may have moved. One process reads, and neither shares nor parts batches,
    nor learns, so nothing is compiled or recorded; batches of an evaluation stay as large as they
    were.

    Args:
        recipe: What the run folder says.
        saved: The training sections of the checkpoint.
    """
    tree, eval_batch_size = recipe.model_dump(mode="json"), Recipe.from_dict(saved).eval_batch_size
    alone = {"stages": 1, "sharding": "none", "concurrent_blocks": False}
    changed = {
        "data": {**tree["data"], "eval_batch_size": eval_batch_size},
        "train": {**saved["train"], **_READS_ONLY},
        "runtime": {**tree["runtime"], **alone},
    }
    return Recipe.from_dict({**tree, **saved, **changed})


def changes(before: Tree, now: Tree) -> list[Change]:
    """Keys of two ``training_sections`` that differ and matter, in order."""
    old, new = _flat(before), _flat(now)
    defaults = _flat(training_sections(Recipe()))
    found = [
        Change(key, old.get(key, defaults.get(key)), new.get(key, defaults.get(key)))
        for key in dict.fromkeys([*new, *old])
        if key not in _FREE
    ]
    return [change for change in found if change.before != change.now]


def same_validation(before: Tree, now: Tree, *, by_loss: bool) -> bool:
    """Whether validation accuracies under both can be compared: of the same samples, and either
    both of averages or both of parameters as they are; losses only by the same loss."""
    keys = {change.key for change in changes(before, now)} - _OF_OTHERS
    sections = {"data", "loss"} if by_loss else {"data"}
    return "train.ema" not in keys and not any(key.partition(".")[0] in sections for key in keys)


def _flat(tree: Tree) -> dict[str, Any]:
    return {
        f"{section}.{key}": value for section, keys in tree.items() for key, value in keys.items()
    }


def refuse_changes(
    found: Iterable[Change], allowed: Iterable[str], *, length_matters: bool
) -> list[Change]:
    """Let those changes pass that are allowed by name, or change only how long a run goes on.

    Args:
        found: What ``changes`` found.
        allowed: Keys, or whole sections.
        length_matters: Whether the steps so far would have been others in a run of another length.

    Returns:
        Those that were allowed by name.

    Raises:
        RecipeError: Others are left, or an allowed key does not exist.
    """
    found, allowed = list(found), set(allowed)
    _check_known(allowed, found)
    named = [c for c in found if {c.key, c.key.partition(".")[0]} & allowed]
    left = [c for c in found if c not in named and (length_matters or c.key not in _LENGTH)]
    if left:
        raise RecipeError(_refusal(left))
    return named


def _check_known(allowed: set[str], found: list[Change]) -> None:
    known = {*_SECTIONS, LAYERS, *_flat(training_sections(Recipe())), *(c.key for c in found)}
    for key in sorted(allowed - known):
        raise RecipeError(unknown_name("key of --allow-change", key, known))


def _refusal(left: list[Change]) -> str:
    listed = "\n".join(f"  {change}" for change in left)
    ends = (
        "\nThe cosine schedule ends with the run, so a longer run would have had other learning "
        "rates from its start."
        if any(c.key in _LENGTH for c in left)
        else ""
    )
    options = " ".join(f"--allow-change {change.key}" for change in left)
    what = "recipe" if any(change.key != LAYERS for change in left) else "network"
    return (
        f"the run was trained by another {what}:\n{listed}{ends}\nGive it the old values, start a "
        f"new run with another --out, or go on with the new ones all the same: {options}."
    )
