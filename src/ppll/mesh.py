"""Where a process stands: which stage, and which replica of it (no torch).

Those of replica 0 come first, in the order of stages, then those of replica 1, of the stages that
have one, and so on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

__all__ = ["Mesh", "crossings"]


@dataclass(frozen=True)
class Mesh:
    """All processes of a run.

    Attributes:
        replicas: Of every stage, the processes that share each of its batches.
    """

    replicas: tuple[int, ...]

    @classmethod
    def of(cls, num_stages: int, num_replicas: int = 1) -> Mesh:
        """Stages that all have as many replicas: copies of one pipeline."""
        return cls((num_replicas,) * num_stages)

    @property
    def num_stages(self) -> int:
        """Stages, each with its replicas."""
        return len(self.replicas)

    @property
    def size(self) -> int:
        """Processes."""
        return sum(self.replicas)

    def stage(self, rank: int) -> int:
        """The stage that a rank carries out."""
        return self._places[rank][1]

    def replica(self, rank: int) -> int:
        """Which of its stage's replicas a rank is."""
        return self._places[rank][0]

    def num_replicas(self, rank: int) -> int:
        """Replicas of a rank's stage, itself included."""
        return self.replicas[self.stage(rank)]

    def rank(self, replica: int, stage: int) -> int:
        """Who carries out a stage as one of its replicas."""
        return self._places.index((replica, stage))

    def ranks(self, stage: int) -> list[int]:
        """All replicas of a stage, in order."""
        return [self.rank(replica, stage) for replica in range(self.replicas[stage])]

    def crossings(self, stage: int, later: int) -> list[tuple[int, int]]:
        """Which ranks of two stages have samples in common, in the order of samples."""
        these, those = self.ranks(stage), self.ranks(later)
        return [(these[i], those[j]) for i, j in crossings(len(these), len(those))]

    def before(self, rank: int) -> list[int]:
        """Who sends features to a rank; nobody to one of the first stage."""
        stage = self.stage(rank)
        pairs = self.crossings(stage - 1, stage) if stage else []
        return [sender for sender, receiver in pairs if receiver == rank]

    def place(self, rank: int) -> str:
        """What a rank is, for people."""
        of = f" of replica {self.replica(rank)}" if max(self.replicas) > 1 else ""
        return f"stage {self.stage(rank)}{of}"

    @cached_property
    def _places(self) -> list[tuple[int, int]]:
        """Replica and stage of every rank."""
        stages = list(enumerate(self.replicas))
        rounds = range(max(self.replicas))
        return [(replica, stage) for replica in rounds for stage, num in stages if replica < num]


def crossings(num_replicas: int, num_later: int) -> list[tuple[int, int]]:
    """Which replicas of two stages have samples in common, of which one has as many or a multiple
    of the other's."""
    most = max(num_replicas, num_later)
    return [(i * num_replicas // most, i * num_later // most) for i in range(most)]
