"""What is simulated: stages, links and pipelines of them (no torch)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ppll.errors import RecipeError

__all__ = ["Link", "Pipeline", "StageTimes", "check_amount"]


def check_amount(what: str, value: float) -> None:
    """Refuse an amount that is negative, infinite or no number.

    Raises:
        RecipeError: It is one of these.
    """
    if not 0 <= value < math.inf:
        raise RecipeError(f"{what} is {value}: give a finite number, at least 0.")


@dataclass(frozen=True)
class StageTimes:
    """What one stage takes for one batch.

    Attributes:
        before_send_s: Until its features are ready: all that its blocks do but for the last
            block's learning.
        after_send_s: Its last block's learning.
        features_bytes: What it sends on.
    """

    before_send_s: float
    after_send_s: float
    features_bytes: float = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_amount(f"a stage's {name}", value)


@dataclass(frozen=True)
class Link:
    """What carries features from one stage to the next.

    Attributes:
        bandwidth_bytes_s: Bytes per second.
        latency_s: Until the first byte, or a credit on its way back, has arrived.
        overlaps: Whether the sender computes during a transfer; else it copies by itself.
        buffers: Whether a transfer goes on by itself, as a network's does; else the sender takes
            no other message before it has ended.
    """

    bandwidth_bytes_s: float = math.inf
    latency_s: float = 0.0
    overlaps: bool = True
    buffers: bool = False

    def __post_init__(self) -> None:
        if not self.bandwidth_bytes_s > 0:
            raise RecipeError(
                f"a link's bandwidth_bytes_s is {self.bandwidth_bytes_s}: give bytes per second, "
                f"above 0 (infinite for a link that takes no time)."
            )
        check_amount("a link's latency_s", self.latency_s)

    def transfer_s(self, num_bytes: float) -> float:
        """Seconds for which a message occupies the link, latency not counted."""
        return num_bytes / self.bandwidth_bytes_s

    def occupied_s(self, stage: StageTimes) -> float:
        """Seconds for which a message occupies a stage that sends over the link."""
        transfer_s = self.transfer_s(stage.features_bytes)
        after_s = stage.after_send_s + (0.0 if self.overlaps else transfer_s)
        return stage.before_send_s + max(after_s, 0.0 if self.buffers else transfer_s)


@dataclass(frozen=True)
class Pipeline:
    """Stages and what joins them.

    Attributes:
        stages: In order.
        links: One between every two stages.
        capacity: Slots of every channel, and batches that the loader may be ahead.
        load_s: What the loader takes for a batch; it works beside the first stage.
        jitter: Every work of a stage on a batch is multiplied by a number of its own, uniform in
            1 - jitter to 1 + jitter, a function of (seed, stage, batch).
        stragglers: Factors by which stages are slower, by stage.
        seed: Of the jitter.
        replicas: Of every stage, or one number for all. They wait for each other after every
            batch, so a work takes as long as in the slowest of them.
    """

    stages: tuple[StageTimes, ...]
    links: tuple[Link, ...]
    capacity: int = 4
    load_s: float = 0.0
    jitter: float = 0.0
    stragglers: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    replicas: int | tuple[int, ...] = 1

    def __post_init__(self) -> None:
        if not self.stages or len(self.links) != len(self.stages) - 1:
            raise RecipeError(
                f"a pipeline of {len(self.stages)} stage(s) has {len(self.links)} link(s): give "
                f"at least one stage, and one link between every two."
            )
        if self.capacity < 1:
            raise RecipeError(f"capacity is {self.capacity}: a channel has 1 slot or more.")
        if len(self.stage_replicas) != len(self.stages) or min(self.stage_replicas) < 1:
            raise RecipeError(
                f"replicas is {self.replicas} for {len(self.stages)} stage(s): give 1 or more of "
                f"each."
            )
        check_amount("load_s", self.load_s)
        if not 0 <= self.jitter <= 1:
            raise RecipeError(f"jitter is {self.jitter}: give a share of the time, 0 to 1.")
        for stage, factor in self.stragglers.items():
            if stage not in range(len(self.stages)):
                raise RecipeError(
                    f"stragglers names stage {stage}: there are 0 to {len(self.stages) - 1}."
                )
            check_amount(f"the factor of straggler {stage}", factor)

    @property
    def slowest_s(self) -> float:
        """Of the stages, links and the loader, the most that one takes for a message: without
        jitter, what a message takes where channels hold enough."""
        links = (*self.links, Link())
        stages = [link.occupied_s(stage) for stage, link in zip(self.stages, links, strict=True)]
        sent = [
            link.transfer_s(s.features_bytes) for s, link in zip(self.stages, links, strict=True)
        ]
        return max(self.load_s, *stages, *sent)

    @property
    def stage_replicas(self) -> tuple[int, ...]:
        """Of every stage."""
        if isinstance(self.replicas, int):
            return (self.replicas,) * len(self.stages)
        return self.replicas
