"""What a layer hands on where that is not one tensor: a tuple, list or dict of tensors, or nested.

One tensor of it is the main one, the first in floating point: shapes, auxiliary networks and local
losses mean that one, and it is a message's ``features``. The others travel beside it, as fields
``beside.0``, ``beside.1``, ... of the same message.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ppll.errors import ModelError
from ppll.message import BESIDE

__all__ = ["MAX_BESIDE", "Structure", "changed_error", "main_of", "mapped", "problem_of"]
__all__ += ["tensors_of"]

MAX_BESIDE: Final = 8
"""Tensors beside the main one; with the other fields, as many as a message holds."""


@dataclass(frozen=True)
class Structure:
    """How tensors are put together that a layer hands on.

    Attributes:
        pattern: The tuple, list or dict with the position of every tensor in its place.
        main: Position of the main tensor.
        shapes: One sample's shape of each of the others, without N.
        dtypes: Their types, computed in float32.
    """

    pattern: Any
    main: int
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def of(cls, output: object) -> Structure | None:
        """The structure of an output that has no ``problem_of``; none of a single tensor."""
        if isinstance(output, Tensor):
            return None
        pattern, tensors = _numbered(output)
        main = next(i for i, tensor in enumerate(tensors) if tensor.is_floating_point())
        others = [*tensors[:main], *tensors[main + 1 :]]
        shapes = tuple(tuple(tensor.shape[1:]) for tensor in others)
        return cls(pattern, main, shapes, tuple(tensor.dtype for tensor in others))

    @property
    def names(self) -> tuple[str, ...]:
        """The fields of a message beside ``features``."""
        return tuple(f"{BESIDE}.{index}" for index in range(len(self.shapes)))

    @property
    def layout(self) -> str:
        """How it looks, for people."""
        return _described(mapped(lambda _: torch.empty(0), self.pattern))

    def taken_apart(self, output: object) -> tuple[Tensor, dict[str, Tensor]] | None:
        """The main tensor and the other fields; none where the output is put together otherwise,
        or not all of it has as many samples."""
        pattern, leaves = _numbered(output)
        if pattern != self.pattern or not all(isinstance(leaf, Tensor) for leaf in leaves):
            return None
        features = leaves.pop(self.main)
        if not all(leaf.shape[:1] == features.shape[:1] for leaf in leaves):
            return None
        return features, dict(zip(self.names, leaves, strict=True))

    def put_together(self, features: Tensor, fields: Mapping[str, Tensor]) -> Any:
        """What the layer handed on, from the main tensor and a message's fields."""
        leaves = [fields[name] for name in self.names]
        leaves.insert(self.main, features)
        return mapped(leaves.__getitem__, self.pattern)


def tensors_of(output: object) -> list[Tensor]:
    """All tensors of a single tensor, or of several that are put together."""
    return [leaf for leaf in _numbered(output)[1] if isinstance(leaf, Tensor)]


def main_of(output: object, structure: Structure | None) -> Tensor:
    """The main tensor of an output that is put together so; none for one tensor."""
    return tensors_of(output)[0 if structure is None else structure.main]


def problem_of(output: object, num_samples: int) -> str | None:
    """Why an output of a batch cannot cross a cut, in words; none if it can."""
    pattern, leaves = _numbered(output)
    if pattern == 0:
        return _problem_of_leaf(output, num_samples) or _problem_of_type(output)
    found = f"a {type(output).__name__}"
    for index, leaf in enumerate(leaves):
        if problem := _problem_of_leaf(leaf, num_samples):
            return f"{found} with {problem} at {_place(pattern, index)}"
    if len(leaves) > MAX_BESIDE + 1:
        return f"{found} of {len(leaves)} tensors"
    if not any(leaf.is_floating_point() for leaf in leaves):
        return f"{found} without a floating tensor"
    return None


def _problem_of_leaf(leaf: object, num_samples: int) -> str | None:
    if not isinstance(leaf, Tensor):
        return f"a {type(leaf).__name__}"
    if leaf.dim() == 0 or leaf.shape[0] != num_samples:
        return f"shape {tuple(leaf.shape)} for {num_samples} samples"
    return f"a tensor of {leaf.dtype}" if leaf.is_complex() else None


def _problem_of_type(output: object) -> str | None:
    assert isinstance(output, Tensor)
    return None if output.is_floating_point() else f"a tensor of {output.dtype}"


def _described(output: object) -> str:
    """How an output is put together, for people: ``(Tensor, Tensor)``."""
    return str(mapped(lambda leaf: _Word(type(leaf).__name__), output))


class _Word(str):
    """Text that is shown without quotation marks."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _numbered(output: object) -> tuple[Any, list[Any]]:
    """The output with the position of everything in it in its place, and these things."""
    leaves: list[Any] = []

    def number(leaf: object) -> int:
        leaves.append(leaf)
        return len(leaves) - 1

    return mapped(number, output), leaves


def mapped(function: Callable[[Any], Any], thing: Any) -> Any:
    """A thing with what a function makes of all in it that is no tuple, list or dict."""
    kind: Any = type(thing)
    if kind is dict or kind is OrderedDict:
        return kind((key, mapped(function, value)) for key, value in thing.items())
    if isinstance(thing, tuple) and hasattr(thing, "_fields"):
        return kind(*[mapped(function, value) for value in thing])
    if isinstance(thing, tuple | list):
        return kind([mapped(function, value) for value in thing])
    return function(thing)


def _place(pattern: Any, index: int) -> str:
    """Where something stands in an output, as Python asks for it: ``['mask'][1]``."""
    if pattern == index:
        return ""
    items: Sequence[tuple[Any, Any]] = [
        *(pattern.items() if isinstance(pattern, dict) else enumerate(pattern))
    ]
    return next(f"[{key!r}]{_place(part, index)}" for key, part in items if _holds(part, index))


def _holds(pattern: Any, index: int) -> bool:
    return index in _numbered(pattern)[1]


def changed_error(layer: str, structure: Structure | None, output: object) -> ModelError:
    """What is wrong with an output that is put together otherwise than in the trial run."""
    expected = "Tensor" if structure is None else structure.layout
    return ModelError(
        f"{layer} returns {_described(output)} now, but {expected} in the trial run before "
        f"training: what is handed on must be put together alike in every batch, in training and "
        f"in evaluation, of tensors that have all samples of the batch in their first dimension."
    )
