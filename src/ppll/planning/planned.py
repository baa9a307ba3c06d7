"""What blocks take, from measured costs: alone, or shared by replicas (no torch).

A block with r replicas gets messages of an r-th of the samples. Its forward and backward passes
shrink with them, but for the parts that the costs say are fixed. Its update does not: every replica
makes it whole, after all have added up their gradients along a line, which they begin beside the
backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ppll.config import Recipe
from ppll.planning.costs import Costs
from ppll.simulation.line_times import exposed_s, line_bytes, slots_bytes
from ppll.simulation.links import Link, StageTimes

__all__ = ["BlockTable", "PlannedBlock", "memory_bytes", "stage_times"]

_WHOLE_LAYERS: Final = 3
"""Most that ``fully_shard`` holds of layers in a backward pass, in sizes of their parameters: a
layer's parameters and gradients, and what the layer after it has added up (torch 2.13,
``_fsdp_param_group.py``)."""


@dataclass(frozen=True)
class PlannedBlock:
    """What one of a block's replicas takes for its shard of a training message.

    Attributes:
        layers: Its layers, by index.
        first: Name of its first layer.
        last: Name of its last layer.
        replicas: Processes that share its messages.
        samples: Of a shard.
        forward_s: Seconds before its features are sent.
        learn_s: Seconds after that: auxiliary network, loss, backward pass and update.
        auxiliary_s: The part of it that is the auxiliary network's, or the network's own loss.
        add_up_s: Seconds for which its replicas add up gradients after the backward pass.
        parameter_bytes: Parameters, those of the auxiliary network included.
        largest_bytes: Parameters of its largest layer, or of the auxiliary network.
        activation_bytes: What it keeps between forward and backward.
        input_bytes: What comes in, but for what the block before hands on of its own input; nothing
            is said of the first block, whose loader is not a channel.
        features_bytes: What it sends on: features, and what goes beside them.
    """

    layers: range
    first: str
    last: str
    replicas: int
    samples: int
    forward_s: float
    learn_s: float
    auxiliary_s: float
    add_up_s: float
    parameter_bytes: int
    largest_bytes: int
    activation_bytes: int
    input_bytes: int
    features_bytes: int

    @property
    def after_send_s(self) -> float:
        """All that comes after its features."""
        return self.learn_s + self.add_up_s

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.forward_s + self.after_send_s

    @property
    def auxiliary_share(self) -> float:
        """Share of its time that is not the network's."""
        return self.auxiliary_s / self.seconds if self.seconds else 0.0


@dataclass
class BlockTable:
    """Blocks of any layers, as any number of replicas carries them out.

    Attributes:
        recipe: What is trained; its own replicas do not count.
        costs: Measured for it.
        link: Between replicas.
    """

    recipe: Recipe
    costs: Costs
    link: Link
    _sized: dict[int, Costs] = field(default_factory=dict)
    _blocks: dict[tuple[int, int, int], PlannedBlock] = field(default_factory=dict)

    def sized(self, replicas: int) -> Costs:
        """The costs of a shard."""
        if replicas not in self._sized:
            samples = self.recipe.message_size_among(replicas)
            self._sized[replicas] = self.costs.for_samples(samples)
        return self._sized[replicas]

    def block(self, start: int, stop: int, replicas: int = 1) -> PlannedBlock:
        """The block of layers ``start`` to ``stop - 1``."""
        key = start, stop, replicas
        if key not in self._blocks:
            self._blocks[key] = self._block(*key)
        return self._blocks[key]

    def _block(self, start: int, stop: int, replicas: int) -> PlannedBlock:
        costs, parts = self.sized(replicas), self.recipe.train.accumulate
        layers, behind = costs.layers[start:stop], costs.exits[stop - 1]
        updates_s = sum(layer.update_s for layer in layers) + behind.update_s
        backward_s = [layers[0].backward_first_s, *(layer.backward_s for layer in layers[1:])]
        auxiliary_s = behind.forward_s + behind.backward_s
        carried_bytes = costs.layers[start - 1].carried_bytes if start else costs.carried_bytes
        made = [(behind.backward_s, behind.parameter_bytes)]
        for seconds, layer in zip(reversed(backward_s), reversed(layers), strict=True):
            made.append((seconds, layer.parameter_bytes))
        return PlannedBlock(
            layers=range(start, stop),
            first=layers[0].name,
            last=layers[-1].name,
            replicas=replicas,
            samples=costs.message_size,
            forward_s=sum(layer.forward_s for layer in layers),
            learn_s=auxiliary_s + sum(backward_s) + updates_s / parts + costs.block_s,
            auxiliary_s=auxiliary_s + behind.update_s / parts,
            add_up_s=exposed_s(made, replicas, self.link) / parts,
            parameter_bytes=sum(num_bytes for _, num_bytes in made),
            largest_bytes=max(num_bytes for _, num_bytes in made),
            activation_bytes=sum(x.activation_bytes for x in layers) + behind.activation_bytes,
            input_bytes=costs.layers[start - 1].leaving_bytes if start else 0,
            features_bytes=layers[-1].leaving_bytes + carried_bytes,
        )


def stage_times(blocks: Sequence[PlannedBlock]) -> StageTimes:
    """What one of a stage's replicas takes for its shard; see ``clusters.crossed`` for the rest."""
    last = blocks[-1]
    before_send_s = sum(block.seconds for block in blocks) - last.after_send_s
    return StageTimes(before_send_s, last.after_send_s, last.features_bytes)


def memory_bytes(recipe: Recipe, blocks: Sequence[PlannedBlock], before: int = 1) -> int:
    """What a process holds: parameters, gradients, optimizer state and averages, the largest
    block's activations (of blocks at the same time, all of theirs), the slots before it, what it
    joins, and what its replicas add up.

    Checkpoints are not counted. Of shares (``runtime.sharding``) see ``_bytes_of_shares``.

    Args:
        recipe: What is trained.
        blocks: Of the process.
        before: Replicas of the stage before.
    """
    num = blocks[0].replicas
    messages = recipe.runtime.capacity + int(before > num)
    incoming = messages * blocks[0].input_bytes
    if recipe.runtime.sharding != "none" and num > 1:
        return incoming + _bytes_of_shares(recipe, blocks)
    parameters = _copies(recipe) * sum(block.parameter_bytes for block in blocks)
    at_once = sum if recipe.runtime.concurrent_blocks else max
    activations = at_once(block.activation_bytes for block in blocks)
    adding_up = max(line_bytes(block.parameter_bytes, num) for block in blocks)
    return parameters + activations + incoming + adding_up


def _copies(recipe: Recipe) -> int:
    """Tensors of every parameter's size: itself, its gradient, optimizer state and average."""
    return 2 + recipe.optimizer.num_states + int(recipe.train.ema > 0)


def _bytes_of_shares(recipe: Recipe, blocks: Sequence[PlannedBlock]) -> int:
    """What a process holds where replicas share a stage's parameters, but for what comes in.

    Most is held either in a backward pass or in an evaluation, for which the first replica gathers
    the whole stage, layer by layer. Gradients of the parts of a batch stay whole until the last.
    """
    num, whole = blocks[0].replicas, sum(block.parameter_bytes for block in blocks)
    largest = max(block.largest_bytes for block in blocks)
    activations = max(block.activation_bytes for block in blocks)
    parts = whole if recipe.train.accumulate > 1 else 0
    learning = activations + parts + _WHOLE_LAYERS * largest
    shares = -(-_copies(recipe) * whole // num)
    slots = max(slots_bytes(block.parameter_bytes, num) for block in blocks)
    return shares + slots + max(learning, whole + largest)
