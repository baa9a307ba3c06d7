"""What a block remembers of a message between its forward and its learning step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ppll.message import Message

__all__ = ["Passage"]


@dataclass(frozen=True, slots=True)
class Passage:
    """A message on its way through a block.

    Attributes:
        message: As it came.
        inputs: The features (N, ...) that the block computes with.
        features: What it made of them, with their history.
        fields: What travels in the message by name, as the block computes with it.
        kept: The tensors that came, those first that the layers read, then those that were made,
            features first.
        versions: Of the first before the forward, of the others after it.
    """

    message: Message
    inputs: Tensor
    features: Tensor
    fields: Mapping[str, Tensor] = field(default_factory=dict)
    kept: tuple[Tensor, ...] = ()
    versions: tuple[int, ...] = ()

    def changed(self) -> Iterator[int]:
        """Positions of the tensors that were changed in place."""
        return (i for i, kept in enumerate(self.kept) if kept._version != self.versions[i])
