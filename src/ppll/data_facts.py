"""What everybody must know of the data, which only the first rank loads (no torch)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["DataFacts"]

_TRAINED_ON: Final = (
    "input_shape",
    "num_classes",
    "num_tokens",
    "predicts_tokens",
    "predicts_values",
    "steps_per_epoch",
    "mean",
    "std",
)
_SAME: Final = 1e-9
"""How far means may lie apart, which another processor adds up in another order."""


@dataclass(frozen=True)
class DataFacts:
    """Sizes and normalisation of a run's data.

    Attributes:
        input_shape: One sample's shape, without N.
        num_classes: Classes to tell apart; or how many values of a sample are to be predicted (D).
        steps_per_epoch: Training batches of an epoch.
        mean: Of every channel of uint8 images, 0 to 1; none for floating point.
        std: Standard deviation of every channel, like ``mean``.
        num_tokens: Different tokens there are, where a sample is a row of tokens (T).
        predicts_tokens: Whether each token of a sample has a target of its own, the token that
            follows it.
        predicts_values: Whether a sample has values (D) to be predicted instead of a class.
        num_test: Samples to test with; 0 where that is not known.
        num_validation: Training samples that are kept back for validation.
        is_given: Whether it was given from Python, and lies in the run folder.
        digest: Of what was given, or made by a function of the user's own; see
            ``ppll.data.kept``. Older versions wrote none.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    steps_per_epoch: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    num_tokens: int | None = None
    predicts_tokens: bool = False
    predicts_values: bool = False
    num_test: int = 0
    num_validation: int = 0
    is_given: bool = False
    digest: str | None = None

    @property
    def holds_tokens(self) -> bool:
        """Whether a sample is a row of tokens (T)."""
        return self.num_tokens is not None

    def num_evaluated(self, *, at_end: bool) -> int:
        """Samples of an evaluation: of all splits at the run's end, of the first one before."""
        if at_end:
            return self.num_validation + self.num_test
        return self.num_validation or self.num_test

    def differences(self, before: DataFacts) -> list[str]:
        """What training depends on and was otherwise before, in words."""
        pairs = {name: (getattr(before, name), getattr(self, name)) for name in _TRAINED_ON}
        found = [
            f"{name} (was {old!r}, is {new!r})"
            for name, (old, new) in pairs.items()
            if not _are_close(old, new)
        ]
        if None not in (self.digest, before.digest) and self.digest != before.digest:
            found.append(f"contents (SHA-256 was {before.digest}, is {self.digest})")
        return found


def _are_close(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_are_close, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_SAME)
    return bool(one == other)
