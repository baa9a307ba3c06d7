"""Who changed a tensor in place: asked when a block's input or output turns out to be changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ppll.block_modules import BlockModules
from ppll.errors import ModelError

__all__ = ["in_place_error"]


def in_place_error(
    block_index: int,
    modules: BlockModules,
    leaves: Callable[[Tensor], object],
    what: str,
    tensor: Tensor,
) -> ModelError:
    """What is wrong with a block that changes its input or output in place.

    Args:
        block_index: Which block.
        modules: What it computes with.
        leaves: Its exit, on its features.
        what: ``"input"`` or ``"output"``.
        tensor: The one that was changed.
    """

    def run_once(inputs: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield "input", inputs
        features = inputs
        for layer in modules.layers:
            features = layer.module(features)
        yield "output", features
        leaves(features)

    culprit = _first_in_place(run_once, [m for _, m in modules.named()], what, tensor)
    return ModelError(
        f"a module changes the {what} of block {block_index} in place: {culprit}. The same "
        f"memory may be another block's, so the result would depend on the placement. "
        f"Use the module's out-of-place form (such as ReLU(inplace=False))."
    )


def _first_in_place(
    run: Callable[[Tensor], Iterator[tuple[str, Tensor]]],
    modules: Sequence[nn.Module],
    what: str,
    like: Tensor,
) -> str:
    """Name the innermost module whose call first changes the watched tensor's version.

    Args:
        run: Runs the modules on an input and yields the tensors that are watched, with a name,
            before anything is done with them.
        modules: The roots of what it runs.
        what: Name of the tensor to watch.
        like: A tensor of the input's shape, type and device.
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
            for name, tensor in run(torch.zeros_like(like)):
                if name == what:
                    watched.append(tensor)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "a function in a forward"
