"""Who changed a tensor in place: asked when a block's input or output turns out to be changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

__all__ = ["first_in_place"]


def first_in_place(
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
