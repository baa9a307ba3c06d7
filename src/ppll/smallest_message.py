"""Whether every training message has samples enough to learn from (no torch)."""

from __future__ import annotations

from collections.abc import Callable

from ppll.config import Recipe
from ppll.errors import DataError

__all__ = ["check_smallest_message", "who_needs_more"]


def who_needs_more(recipe: Recipe, compares_samples: bool, has_batch_norm: bool) -> str | None:
    """What of a recipe cannot learn from one sample, in words; none if everything can.

    Args:
        recipe: Names the method.
        compares_samples: Whether the method's loss does, in some block.
        has_batch_norm: Whether a layer or an auxiliary network has it.
    """
    if compares_samples:
        return f"method {recipe.method.name!r}, which compares samples,"
    return "batch norm" if has_batch_norm else None


def check_smallest_message(
    recipe: Recipe, num_train: int, who_cannot: Callable[[], str | None]
) -> None:
    """Refuse messages without a sample, and of one where something cannot learn from it.

    Args:
        recipe: Says how batches are shared and parted.
        num_train: Samples of an epoch.
        who_cannot: Names what cannot learn from one sample, if there is something; is asked
            only where a message has one.

    Raises:
        DataError: There is such a message.
    """
    batch_size, replicas = recipe.data.batch_size, recipe.most_replicas
    last = 0 if recipe.data.drop_last else num_train % batch_size
    if 0 < last < replicas:
        raise DataError(
            f"the last training batch of an epoch has {last} sample(s) ({num_train} samples in "
            f"batches of {batch_size}), too few for {replicas} replicas (train.replicas): set "
            f"data.drop_last = true, or another data.batch_size."
        )
    sizes = [size for size in (batch_size, last) if size]
    smallest = {size: size // replicas // recipe.num_parts(size) for size in sizes}
    if 1 not in smallest.values() or (who := who_cannot()) is None:
        return
    parts = f", shared by {replicas} replicas" if replicas > 1 else ""
    parts += f", each as {recipe.train.accumulate} messages" if recipe.train.accumulate > 1 else ""
    if smallest[batch_size] == 1:
        raise DataError(
            f"training messages have one sample (data.batch_size = {batch_size}{parts}), which "
            f"{who} cannot learn from: set a larger data.batch_size, or a smaller "
            f"train.accumulate or train.replicas."
        )
    raise DataError(
        f"the last training batch of an epoch has one sample ({num_train} samples in "
        f"batches of {batch_size}{parts}), which {who} cannot learn from: "
        f"set data.drop_last = true, or another data.batch_size."
    )
