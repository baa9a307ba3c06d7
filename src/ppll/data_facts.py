"""What everybody must know of the data, which only the first rank loads (no torch)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DataFacts"]


@dataclass(frozen=True)
class DataFacts:
    """Sizes and normalisation of a run's data.

    Attributes:
        input_shape: One sample's shape, without N.
        num_classes: Classes to tell apart.
        steps_per_epoch: Training batches of an epoch.
        mean: Of every channel of uint8 images, 0 to 1; none for floating point.
        std: Standard deviation of every channel, like ``mean``.
        holds_tokens: Whether a sample is a row of tokens (T), each with a target of its own.
        num_test: Samples to test with; 0 where that is not known.
        num_validation: Training samples that are kept back for validation.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    steps_per_epoch: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    holds_tokens: bool = False
    num_test: int = 0
    num_validation: int = 0

    def num_evaluated(self, *, at_end: bool) -> int:
        """Samples of an evaluation: of all splits at the run's end, of the first one before."""
        if at_end:
            return self.num_validation + self.num_test
        return self.num_validation or self.num_test
