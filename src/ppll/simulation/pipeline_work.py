"""What end-to-end training of a network computes, as its schedules deal it out (no torch)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ppll.errors import RecipeError
from ppll.simulation.simulate import check_amount

__all__ = ["PipelineWork"]


@dataclass(frozen=True)
class PipelineWork:
    """What a whole batch takes on one device, by chunk: what a pipeline moves as one.

    Attributes:
        forward_s: Forward pass.
        backward_s: Whole backward pass.
        update_s: Optimizer step.
        features_bytes: Output, and gradient that comes back; the last chunk's does not travel.
        parameter_bytes: Gradients that ``ddp`` reduces; nothing else asks for them.
        weight_share: Share of a backward pass that is for the weights.
        overhead_s: Of the host for every action, whatever its size.
        forward_fixed_s: The part of ``forward_s`` that a piece of the batch takes, too, however
            small it is; without, nothing.
        backward_fixed_s: That of ``backward_s``.
    """

    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    update_s: tuple[float, ...]
    features_bytes: tuple[float, ...]
    parameter_bytes: tuple[float, ...] | None = None
    weight_share: float = 0.5
    overhead_s: float = 0.0
    forward_fixed_s: tuple[float, ...] | None = None
    backward_fixed_s: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name, row in self._rows().items():
            if len(row) != self.num_chunks or not row:
                raise RecipeError(
                    f"{name} has {len(row)} entries and forward_s has {self.num_chunks}: give one "
                    f"for every chunk, and one chunk or more."
                )
            for value in row:
                check_amount(f"an entry of {name}", value)
        check_amount("overhead_s", self.overhead_s)
        if not 0 <= self.weight_share <= 1:
            raise RecipeError(f"weight_share is {self.weight_share}: give a share, 0 to 1.")

    @property
    def num_chunks(self) -> int:
        """Number of chunks."""
        return len(self.forward_s)

    def piece_s(self, num_pieces: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Seconds of every chunk's forward and backward for one of so many equal pieces."""
        return (
            _pieces(self.forward_s, self.forward_fixed_s, num_pieces),
            _pieces(self.backward_s, self.backward_fixed_s, num_pieces),
        )

    def merged(self, num_chunks: int) -> PipelineWork:
        """The same work in fewer chunks, each of equally many neighbours."""
        size = self.num_chunks // num_chunks
        parts: dict[str, Any] = {
            name: tuple(sum(row[i : i + size]) for i in range(0, self.num_chunks, size))
            for name, row in self._rows().items()
        }
        return replace(self, **{**parts, "features_bytes": self.features_bytes[size - 1 :: size]})

    def scaled(self, factor: float) -> PipelineWork:
        """The same work on a device that takes ``factor`` times as long."""
        times: dict[str, Any] = {
            name: tuple(factor * seconds for seconds in row)
            for name, row in self._rows().items()
            if name.endswith("_s")
        }
        return replace(self, **{**times, "overhead_s": factor * self.overhead_s})

    def _rows(self) -> dict[str, tuple[float, ...]]:
        return {name: value for name, value in vars(self).items() if isinstance(value, tuple)}


def _pieces(
    row: tuple[float, ...], fixed: tuple[float, ...] | None, num_pieces: int
) -> tuple[float, ...]:
    pairs = zip(row, fixed or (0.0,) * len(row), strict=True)
    return tuple(fixed_s + (seconds - fixed_s) / num_pieces for seconds, fixed_s in pairs)
