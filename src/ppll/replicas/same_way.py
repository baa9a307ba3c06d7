"""A backward pass that goes the same way in every replica, whatever a layer has computed.

Torch's ``fully_shard`` gathers a layer again when a gradient comes to its output, and adds up the
gradients of those parameters that have one. Where replicas pass over a layer, or a part of it, at
random (stochastic depth; each draws numbers of its own), they would not do the same. So an output
belongs to the graph of the backward pass in any case, and all parameters have a gradient before it
goes through the layer: one that adds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        self.names = [name for name, _ in _trained(module)]
        """The parameters that get gradients."""
        self._gradients: list[Tensor] = []
        module.register_forward_hook(self._prepare)

    def take_found(self) -> list[str]:
        """Names of the parameters that the backward passes since the last call came to."""
        gradients, self._gradients = self._gradients, []
        # What comes to a gradient that is there is added to it in place.
        pairs = zip(self.names, gradients, strict=True)
        return [name for name, gradient in pairs if gradient._version]

    def _prepare(self, module: nn.Module, _inputs: object, output: Any) -> Any:
        """The output, which tells when a gradient comes to it."""
        parameters = [parameter for _, parameter in _trained(module)]
        if not (parameters and torch.is_grad_enabled()):
            return output
        if not any(tensor.requires_grad for tensor in tensors_of(output)):
            output = _joined(output, parameters)
        for tensor in tensors_of(output):
            if tensor.requires_grad:
                tensor.register_hook(partial(self._fill, parameters))  # type: ignore[no-untyped-call]
        return output

    def _fill(self, parameters: Sequence[Tensor], _gradient: Tensor) -> None:
        """Give the parameters gradients, if this has not been done yet for a batch."""
        if not self._gradients:
            self._gradients = [torch.full_like(p, NOTHING) for p in parameters]
            for parameter, gradient in zip(parameters, self._gradients, strict=True):
                parameter.grad = gradient


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that are cut among replicas and learn."""
    return ((n, p) for n, p in module.named_parameters() if p.requires_grad and p.ndim)


def _joined(output: Any, parameters: Sequence[Tensor]) -> Any:
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
