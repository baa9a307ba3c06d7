"""A block's forward and its local loss as code that torch compiles.

Every shape of input gets code of its own. Torch would otherwise compile for any shape once it has
seen two, so that the bits of a step depended on what came before it: on the shapes that a resumed
run has not seen, and on the blocks that share a process.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, ParamSpec, TypeVar

import torch

__all__ = ["compiled", "compiler_settings", "missing_compiler"]

_Inputs = ParamSpec("_Inputs")
_Output = TypeVar("_Output")

_MOST_SHAPES: Final = 1024
"""Of all blocks of a process together; torch gives up after 8 and goes on uncompiled."""


def compiled(function: Callable[_Inputs, _Output]) -> Callable[_Inputs, _Output]:
    """The function, compiled when it is first called on tensors of new shapes."""
    return torch.compile(function, dynamic=False)


@contextmanager
def compiler_settings() -> Iterator[None]:
    """How torch compiles inside: for every block and shape, or not at all; in this process."""
    import torch._dynamo.config
    import torch._inductor.config

    dynamo, inductor = torch._dynamo.config, torch._inductor.config
    limits = {"recompile_limit": _MOST_SHAPES, "accumulated_recompile_limit": _MOST_SHAPES}
    with (
        dynamo.patch({**limits, "fail_on_recompile_limit_hit": True}),
        # Processes that compile would outlive a rank that fails.
        inductor.patch({"compile_threads": 1, "deterministic": True}),
    ):
        yield


def missing_compiler() -> str | None:
    """The C++ compiler that torch would call for processors and that is not there."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return None if shutil.which(name) else name
