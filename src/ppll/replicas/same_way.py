"""A backward pass that goes the same way in every replica, whatever a layer has computed.

Torch's ``fully_shard`` gathers a layer again when a gradient comes to its output, and adds up the
gradients of those parameters that have one. Where replicas pass over a layer, or a part of it, at
random (stochastic depth; each draws numbers of its own), they would not do the same. So an output
belongs to the graph of the backward pass in any case, and parameters that have no gradient when it
has gone through the layer get one that adds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ppll.models.structures import mapped, tensors_of
from ppll.replicas.exchange import NOTHING

__all__ = ["SameWay"]


class SameWay:
    """One layer's backward passes.

    Args:
        module: The layer, before it is handed to ``fully_shard``.
    """

    def __init__(self, module: nn.Module) -> None:
        self._names = [name for name, _ in _trained(module)]
        self._filled: dict[str, Tensor] = {}
        module.register_forward_hook(self._prepare)

    def take_found(self) -> list[str]:
        """Names of the parameters that got a gradient of their own since the last call."""
        filled, self._filled = self._filled, {}
        # What comes to a gradient that is there is added to it in place.
        return [name for name in self._names if name not in filled or filled[name]._version]

    def _prepare(self, module: nn.Module, inputs: object, output: Any) -> Any:
        """The output, as it belongs to the graph; the parameters are whole here."""
        if not (self._names and torch.is_grad_enabled()):
            return output
        parameters = dict(_trained(module))
        if not _in_graph(output):
            output = _joined(output, parameters.values())
        fill: Any = partial(self._fill, parameters)
        # Behind the layer's own backward pass; before it, where it ends with the parameters. A
        # layer that is computed again does not come here: that stops at the last tensor it needs.
        for tensor in _in_graph(inputs) or _in_graph(output):
            tensor.register_hook(fill)
        return output

    def _fill(self, parameters: Mapping[str, Tensor], _gradient: Tensor) -> None:
        """Give parameters that have no gradient one that adds nothing."""
        for name, parameter in parameters.items():
            if parameter.grad is None:
                parameter.grad = self._filled[name] = torch.full_like(parameter, NOTHING)


def _in_graph(of: object) -> list[Any]:
    return [tensor for tensor in tensors_of(of) if tensor.requires_grad]


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that are cut among replicas and learn."""
    return ((n, p) for n, p in module.named_parameters() if p.requires_grad and p.ndim)


def _joined(output: Any, parameters: Iterable[Tensor]) -> Any:
    """An output in whose graph the parameters are, though nothing comes to them."""
    main = next((t for t in tensors_of(output) if t.is_floating_point()), None)
    if main is None:
        return output
    joined = _Join.apply(main, *parameters)  # type: ignore[no-untyped-call]
    return mapped(lambda leaf: joined if leaf is main else leaf, output)


class _Join(torch.autograd.Function):
    """Hands on the first tensor; nothing gets a gradient from it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, *others: Tensor) -> Tensor:
        ctx.num = 1 + len(others)
        return tensor

    @staticmethod
    def backward(ctx: Any, *_gradient: Tensor) -> tuple[None, ...]:
        num: int = ctx.num
        return (None,) * num
