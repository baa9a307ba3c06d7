"""Attention as single matrix products, which are all that torch's flop counter knows of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["plain_attention"]


@contextmanager
def plain_attention() -> Iterator[None]:
    """No kernel does all of attention, and none all of a layer of torch's transformer.

    Outside of training ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` have one of
    their own, of which the counter says 0. The switch is the process's, so it is put back.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
