"""Modules without values: shapes alone, or new memory that is to be filled."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["emptied", "with_memory", "without_values"]

_DRAWS: Final = (Tensor.normal_, Tensor.uniform_)
_FACTORIES: Final = (torch.empty, torch.zeros, torch.ones)


@contextmanager
def without_values() -> Iterator[None]:
    """Modules made in this context have shapes but no memory and no values.

    They are float32, whatever torch's default is, which belongs to all threads.
    """
    with torch.device("meta"), _Float32WithoutDraws():
        yield


def emptied(module: nn.Module) -> nn.Module:
    """A copy that has the module's shapes but no values, on the meta device.

    ``nn.Module.to`` would give each name of a shared parameter a tensor of its own.
    """
    return with_memory(copy.deepcopy(module), torch.device("meta"))


def with_memory(module: nn.Module, device: torch.device) -> nn.Module:
    """The module itself, its parameters and buffers in new memory on ``device``, without values.

    As ``nn.Module.to_empty``, which imports a second's worth of sympy for the meta device.
    """
    made: dict[int, Tensor] = {}  # What is shared within the module stays shared.
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in made:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                made[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
            setattr(part, name, made[id(parameter)])
        for name, buffer in part.named_buffers(recurse=False, remove_duplicate=False):
            empty = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
            setattr(part, name, made.setdefault(id(buffer), empty))
    return module


class _Float32WithoutDraws(TorchFunctionMode):
    """Draws no first values: on the meta device that does nothing but import half of torch."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _DRAWS:
            return args[0]
        options = dict(kwargs or {})
        if func in _FACTORIES and options.get("dtype") is None:
            options["dtype"] = torch.float32
        return func(*args, **options)
