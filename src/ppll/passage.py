"""What a block remembers of a message between its forward and its learning step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
        input_version: Of the features that came, before the forward.
        feature_version: Of its own, after it.
    """

    message: Message
    inputs: Tensor
    features: Tensor
    input_version: int
    feature_version: int

    def changed(self) -> Iterator[tuple[str, Tensor]]:
        """Input and output, as far as they were changed in place."""
        if self.message.features._version != self.input_version:
            yield "input", self.message.features
        if self.features._version != self.feature_version:
            yield "output", self.features
