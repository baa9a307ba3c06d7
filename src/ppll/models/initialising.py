"""First values: a function of the seed and the names of what gets them, of nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ppll.errors import ModelError
from ppll.memory_layout import in_plain_order
from ppll.models.copies import CopyOf, LikeOf
from ppll.models.names import qualified
from ppll.numerics import own_generator
from ppll.randomness import fold

__all__ = ["initialise", "resets_itself"]


def initialise(
    module: nn.Module, prefix: str, seed: int, given: Mapping[str, Tensor] | None = None
) -> None:
    """Give parameters and buffers their first values: a function of the seed and their names.

    Each module that owns some directly is reset by its own ``reset_parameters`` after the default
    generator was seeded from the seed and the module's name. So the values do not depend on
    what else is built, where the network is cut, or which process does it. The values before do
    not matter: what ``to_empty`` made of a module on the meta device will do. The state of the
    generator is restored.

    Copies of the network's layers begin with the values that are given for those, if any. So do
    modules that have no ``reset_parameters``, in layers built like others, but in another order.

    Args:
        module: A layer or an auxiliary network, on the CPU, changed in place.
        prefix: Its name in the whole model; names of its inner modules follow after a dot.
        seed: Of the run, as in ``train.seed``.
        given: Values that the network begins with, by their names in it.

    Raises:
        ModelError: A module owns parameters or buffers but has no ``reset_parameters``, and nothing
            is given for the layer that it is like.
        ValueError: Something is not on the CPU, whose generator the values come from.
    """
    given = given or {}
    with own_generator():
        for name, child, like in _parts(module, prefix):
            owned = _owned(child)
            if isinstance(child, CopyOf):
                if not child.is_whole_in(given):
                    initialise(child.layer, child.source, seed, given)
                child.take(given)
            elif owned:
                _check_on_cpu(name, owned)
                torch.default_generator.manual_seed(fold(seed, name) % 2**32)
                if resets_itself(child) or like is None or not like.draw(child, given):
                    _reset(name, child, owned)


def resets_itself(module: nn.Module) -> bool:
    """Whether a module can set the parameters and buffers that it owns directly, if any."""
    return hasattr(module, "reset_parameters") or not _owned(module)


def _parts(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module, LikeOf | None]]:
    """All modules but those in copies, with their names and the layer like another they are in."""
    around: dict[str, CopyOf | LikeOf] = {}
    for name, child in module.named_modules(prefix=prefix):
        holder = next((held for start, held in around.items() if name.startswith(start)), None)
        if not isinstance(holder, CopyOf):
            yield name, child, holder
        if isinstance(child, CopyOf | LikeOf):
            around[f"{name}."] = child


def _owned(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that belong to the module itself, not to an inner one."""
    parameters = module.named_parameters(recurse=False)
    return {**dict(parameters), **dict(module.named_buffers(recurse=False))}


def _check_on_cpu(module_name: str, owned: dict[str, Tensor]) -> None:
    for name, tensor in owned.items():
        if tensor.device.type != "cpu":
            raise ValueError(
                f"first values are drawn on the CPU, but {qualified(module_name, name)!r} is on "
                f"{tensor.device}: materialise it there and move it afterwards"
            )


def _reset(name: str, module: nn.Module, owned: dict[str, Tensor]) -> None:
    reset = getattr(module, "reset_parameters", None)
    if reset is None:
        raise ModelError(
            f"module {name!r} ({type(module).__name__}) owns {', '.join(owned)} but has no "
            "reset_parameters(): give it one that sets all of them."
        )
    with in_plain_order(owned.values()):
        reset()
