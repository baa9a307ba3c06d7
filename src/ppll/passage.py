"""What a block remembers of a message between its forward and its learning step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

from ppll.message import Message

__all__ = ["End", "Passage", "Watched", "watched"]

End: TypeAlias = Literal["input", "output"]
"""Where a block meets its neighbours."""


class Watched(NamedTuple):
    """A tensor that must stay as it is.

    Attributes:
        end: Where it is.
        name: Its field.
        tensor: Itself.
        version: Of its values.
    """

    end: End
    name: str
    tensor: Tensor
    version: int


@dataclass(frozen=True, slots=True)
class Passage:
    """A message on its way through a block.

    Attributes:
        message: As it came.
        inputs: The features (N, ...) that the block computes with.
        features: What it made of them, with their history.
        kept: The tensors that came and those that were made.
    """

    message: Message
    inputs: Tensor
    features: Tensor
    kept: tuple[Watched, ...] = ()

    def changed(self) -> Iterator[Watched]:
        """Inputs and outputs that were changed in place."""
        return (kept for kept in self.kept if kept.tensor._version != kept.version)


def watched(end: End, tensors: Mapping[str, Tensor]) -> tuple[Watched, ...]:
    """The tensors at one end of a block, as they are now."""
    return tuple(Watched(end, name, t, t._version) for name, t in tensors.items())
