"""Who changed a tensor in place: asked when one at a block's ends turns out to be changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ppll.blocks.modules import BlockModules
from ppll.errors import ModelError
from ppll.message import FEATURES, TARGETS

__all__ = ["in_place_error"]


def in_place_error(
    block_index: int,
    modules: BlockModules,
    leaves: Callable[[Tensor], object],
    position: int,
    fields: Mapping[str, Tensor],
) -> ModelError:
    """What is wrong with a block that changes what it reads, or its output, in place.

    Args:
        block_index: Which block.
        modules: What it computes with.
        leaves: Its exit, on its features.
        position: Of the tensor that was changed, among those that its layers read, then the other
            fields, then those that it makes.
        fields: What it computes with, by name.
    """

    def run_once() -> Iterator[Tensor]:
        zeros = {name: torch.zeros_like(fields[name]) for name in modules.reads}
        yield from zeros.values()
        features, beside = modules(zeros[FEATURES], {**fields, **zeros})
        yield from (features, *beside.values())
        leaves(features)

    others = [name for name in fields if name not in modules.reads]
    beyond = position - len(modules.reads)
    if 0 <= beyond < len(others):
        return _of_field(block_index, others[beyond])
    end, at = ("input", position) if beyond < 0 else ("output", position - len(others))
    culprit = _first_in_place(run_once, [m for _, m in modules.named()], at)
    return ModelError(
        f"a module changes the {end} of block {block_index} in place: {culprit}. The same "
        f"memory may be another block's, so the result would depend on the placement. "
        f"Use the module's out-of-place form (such as ReLU(inplace=False))."
    )


def _of_field(block_index: int, name: str) -> ModelError:
    """The error for a field that no layer reads: the loss does, or context."""
    who, what = ("loss", "the targets") if name == TARGETS else ("method", f"the field {name!r}")
    return ModelError(
        f"the {who} of block {block_index} changes {what} in place. The same memory may be "
        f"another block's, so the result would depend on the placement. Let it change a copy: "
        f"{name}.clone()."
    )


def _first_in_place(
    run: Callable[[], Iterator[Tensor]],
    modules: Sequence[nn.Module],
    position: int,
) -> str:
    """Name the innermost module whose call first changes the watched tensor's version.

    Args:
        run: Runs the modules and yields the tensors at both ends, each before anything is done
            with it.
        modules: The roots of what it runs.
        position: Which of them to watch.
    """
    watched: list[Tensor] = []
    versions: dict[nn.Module, int] = {}
    found: list[str] = []

    def before(module: nn.Module, _: object) -> None:
        if watched:
            versions[module] = watched[0]._version

    def after(module: nn.Module, _: object, __: object) -> None:
        if watched and versions.get(module) != watched[0]._version:
            found.append(repr(module).partition("\n")[0])

    leaves = [m for root in modules for m in root.modules() if not list(m.children())]
    handles = [m.register_forward_pre_hook(before) for m in leaves]
    handles += [m.register_forward_hook(after) for m in leaves]
    try:
        with torch.no_grad():
            for index, tensor in enumerate(run()):
                if index == position:
                    watched.append(tensor)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "a function in a forward"
