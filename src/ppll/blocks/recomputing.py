"""Activations that are computed again in the backward pass instead of being kept for it.

A block keeps the input of each of its layers, and of one layer at a time what lies between (Chen
et al., "Training deep nets with sublinear memory cost", 2016). The bits are those of keeping all:
a layer draws the same random numbers again, and counts no batch twice.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["recomputed"]


def recomputed(module: nn.Module, features: Any) -> Any:
    """A layer's output from its input, which alone is kept for the backward."""
    return checkpoint(module, features, use_reentrant=False, context_fn=partial(_contexts, module))


def _contexts(
    module: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _CountedBefore(module)


class _CountedBefore(AbstractContextManager[None]):
    """Batch norm takes a batch into its running statistics in the forward only.

    With no momentum they stay as they are; not to track them at all would be another operation. It
    is entered once for every backward pass through the layer, of which a loss on a gradient makes
    two.

    Args:
        module: Whose batch norms.
    """

    def __init__(self, module: nn.Module) -> None:
        norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]

    def __enter__(self) -> None:
        for norm, _, _ in self._before:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *error: object) -> None:
        for norm, momentum, num_batches in self._before:
            norm.momentum, norm.num_batches_tracked = momentum, num_batches
