"""The devices that ``ppll bench emulate`` emulates: alike, or as fast as measured costs say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ppll.bench.sleeping_block import BlockTimes
from ppll.errors import ModelError, RecipeError
from ppll.planning.plan import Plan, draw_plan
from ppll.planning.planned import PlannedBlock
from ppll.planning.processes import with_more_blocks
from ppll.planning.rivals import pipeline_work
from ppll.simulation.pipeline_work import PipelineWork
from ppll.simulation.simulate import check_amount

__all__ = ["Devices"]


@dataclass(frozen=True)
class Devices:
    """What is emulated.

    Attributes:
        blocks: Of local learning, auxiliary networks included, each as one device has it.
        work: Of end-to-end training in so many chunks: without auxiliary networks.
        replicas: Devices of every block; without, one each.
        unshared: The blocks as one device would have all of them, where they have replicas.
        more_blocks: A block a device instead, where they have replicas; none where it cannot be.
    """

    blocks: tuple[BlockTimes, ...]
    work: Callable[[int], PipelineWork]
    replicas: tuple[int, ...] = ()
    unshared: tuple[BlockTimes, ...] = ()
    more_blocks: tuple[BlockTimes, ...] = ()

    @classmethod
    def even(
        cls,
        num_stages: int,
        *,
        forward_s: float,
        backward_s: float,
        auxiliary_s: float,
        payload_bytes: int,
        parameter_bytes: int = 0,
    ) -> Devices:
        """Devices that are all alike; the last block needs no auxiliary network.

        Args:
            num_stages: Devices.
            forward_s: Of a device's part of the network.
            backward_s: Of the same.
            auxiliary_s: Of a block's auxiliary network, forward and backward.
            payload_bytes: What crosses every boundary.
            parameter_bytes: Gradients of a device's part, which only ``ddp`` exchanges.

        Raises:
            RecipeError: A time or a size is negative or no number.
        """
        amounts = {"forward_s": forward_s, "backward_s": backward_s, "auxiliary_s": auxiliary_s}
        for name, amount in {**amounts, "payload_bytes": payload_bytes}.items():
            check_amount(name, amount)
        block = BlockTimes(forward_s, backward_s + auxiliary_s, payload_bytes)
        blocks = (block,) * (num_stages - 1) + (BlockTimes(forward_s, backward_s, payload_bytes),)

        def work(num_chunks: int) -> PipelineWork:
            share = num_stages / num_chunks
            return PipelineWork(
                (forward_s * share,) * num_chunks,
                (backward_s * share,) * num_chunks,
                (0.0,) * num_chunks,
                (float(payload_bytes),) * num_chunks,
                (parameter_bytes * share,) * num_chunks,
            )

        return cls(blocks, work)

    @classmethod
    def of_plan(cls, plan: Plan, slow_down: float) -> Devices:
        """Devices that take ``slow_down`` times as long as the costs of a plan say.

        Raises:
            RecipeError: ``slow_down`` is negative or no number, or a batch is several messages.
        """
        check_amount("slow_down", slow_down)
        if (parts := plan.recipe.train.accumulate) > 1:
            raise RecipeError(
                f"train.accumulate = {parts}: emulated devices take a batch as one message; set it "
                f"to 1, and measure the costs so."
            )
        blocks, unshared, more = (
            tuple(_times(block, slow_down) for block in row)
            for row in (plan.blocks, plan.unshared, _more_blocks(plan))
        )
        replicas = tuple(block.replicas for block in plan.blocks)
        return cls(
            blocks,
            lambda num_chunks: pipeline_work(plan, num_chunks).scaled(slow_down),
            *(replicas, unshared, more),
        )

    @property
    def num_devices(self) -> int:
        """Of a pipeline and its replicas."""
        return sum(self.replicas) or len(self.blocks)

    def stages(self, system: str) -> tuple[tuple[BlockTimes, ...], ...]:
        """Blocks of every stage of a system that learns locally."""
        if system == "sequential":
            return (self.unshared or self.blocks,)
        return tuple((b,) for b in (self.blocks if system == "ppll" else self.more_blocks))


def _times(block: PlannedBlock, slow_down: float) -> BlockTimes:
    """What a block sleeps; adding up takes what it takes."""
    seconds = block.forward_s * slow_down, block.learn_s * slow_down
    return BlockTimes(*seconds, block.features_bytes, block.parameter_bytes)


def _more_blocks(plan: Plan) -> tuple[PlannedBlock, ...]:
    """A block for each process of a plan with replicas; none where there are too few layers."""
    if plan.recipe.most_replicas == 1:
        return ()
    cut = with_more_blocks(plan.recipe, plan.num_processes)
    try:
        return draw_plan(cut, plan.costs, plan.num_processes, plan.link).blocks
    except ModelError:
        return ()
