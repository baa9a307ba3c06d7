"""Where a process stands: which stage of which replica (no torch).

The ranks of a replica follow each other, so those of replica 0 are its stages.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Mesh"]


@dataclass(frozen=True)
class Mesh:
    """All processes of a run.

    Attributes:
        num_stages: Stages of every replica.
        num_replicas: Copies of the pipeline, each of which sees its shard of every batch.
    """

    num_stages: int
    num_replicas: int = 1

    @property
    def size(self) -> int:
        """Processes."""
        return self.num_stages * self.num_replicas

    def stage(self, rank: int) -> int:
        """The stage that a rank carries out."""
        return rank % self.num_stages

    def replica(self, rank: int) -> int:
        """The replica that a rank belongs to."""
        return rank // self.num_stages

    def rank(self, replica: int, stage: int) -> int:
        """Who carries out a stage of a replica."""
        return replica * self.num_stages + stage

    def place(self, rank: int) -> str:
        """What a rank is, for people."""
        of = f" of replica {self.replica(rank)}" if self.num_replicas > 1 else ""
        return f"stage {self.stage(rank)}{of}"
