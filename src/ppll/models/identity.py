"""What the layers of a network are, in words that are the same in every process and every run.

Names and shapes of parameters do not tell a Tanh from a ReLU, nor four heads from eight.
"""

from __future__ import annotations

import hashlib
import re
import types
from collections.abc import Iterator
from typing import Final

from torch import fx, nn

from ppll.models.network import Network

__all__ = ["describe_layers"]

_LONGEST: Final = 2_000
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")
_PASSING: Final = re.compile("training|device|.*cache.*")
"""Attributes that change with what a module has done, or where it lies."""
_EXACT: Final = (bool, int)
_FUNCTIONS: Final = (types.FunctionType, types.BuiltinFunctionType)


def describe_layers(network: Network) -> dict[str, str]:
    """What every layer is, by its name, in order: a line a module, or a digest of many lines.

    Values of parameters and buffers do not matter, nor where they lie.
    """
    return {layer.name: _shortened("\n".join(_lines(layer.module))) for layer in network.layers}


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    first, digest = text.splitlines()[0], hashlib.sha256(text.encode()).hexdigest()
    return f"{first[:80]} ... sha256 {digest}"


def _lines(module: nn.Module) -> Iterator[str]:
    for name, part in module.named_modules(remove_duplicate=False):
        said = ", ".join(_said(part))
        line = f"{name}: {type(part).__name__}({said})".removeprefix(": ")
        yield _ADDRESS.sub("", " ".join(line.split()))


def _said(part: nn.Module) -> Iterator[str]:
    """What a module says of itself; of one that says nothing, its plain attributes."""
    if isinstance(part, fx.GraphModule):
        yield part.code
    elif type(part).extra_repr is not nn.Module.extra_repr:
        yield part.extra_repr()
    else:
        for key, value in sorted(vars(part).items()):
            shown = None if key.startswith("_") or _PASSING.fullmatch(key) else _plain(value)
            if shown is not None:
                yield f"{key}={shown}"


def _plain(value: object) -> str | None:
    """A number, word or function, or several; nothing of what else a module may keep."""
    if type(value) in _EXACT:
        return repr(value)
    if type(value) is float:
        return f"{value:.6g}"
    if type(value) is str:
        return value if value.isidentifier() else None
    if isinstance(value, _FUNCTIONS):
        return value.__qualname__
    if type(value) in (tuple, list):
        parts = [_plain(item) for item in value]  # type: ignore[attr-defined]
        return None if None in parts else f"({', '.join(map(str, parts))})"
    return None
