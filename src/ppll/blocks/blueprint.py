"""A network into blocks, and blocks onto stages.

Cuts are the algorithm and come from the recipe; which stage runs which blocks is placement and
changes nothing but time.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ppll.blocks.block import Block
from ppll.blocks.graphs import RecordedBlock, Recorder
from ppll.blocks.modules import BlockModules, Chain
from ppll.blocks.optimization import Schedule, build_optimizer
from ppll.config import Recipe
from ppll.cuts import cut_starts
from ppll.data_facts import DataFacts
from ppll.errors import ModelError, RecipeError, up_to
from ppll.memory_layout import lay_out
from ppll.methods import BlockSite, Method, methods
from ppll.models.empty import with_memory, without_values
from ppll.models.network import Layer, Network
from ppll.models.trial import check_vocabulary, tried
from ppll.numerics import autocast_dtype
from ppll.own_class import is_own_class
from ppll.own_method import blamed, build_own_method
from ppll.placement import place, place_alike
from ppll.sections import SplitConfig, TrainConfig
from ppll.site import sites_of
from ppll.task_loss import build_task_loss, refuse_classes

__all__ = ["Blueprint", "block_ranges", "build_method"]


def block_ranges(network: Network, split: SplitConfig) -> tuple[range, ...]:
    """The layers of every block, by index.

    ``"even"`` deals the layers between stem and head into runs of equal length, the later ones
    one longer where it does not come out even; the stem goes with the first and the head with the
    last. For ResNet-32 in four this is the cut of the InfoPro paper.

    Raises:
        ModelError: There are more blocks than layers to deal, or a cut lies outside the network.
    """
    num_layers = len(network.layers)
    starts = cut_starts(split, num_layers, network.num_stem, network.num_head)
    return tuple(range(a, b) for a, b in zip([0, *starts], [*starts, num_layers], strict=True))


def build_method(recipe: Recipe) -> Method:
    """The recipe's method: one of the shelf, or a class of the user's own.

    Raises:
        RecipeError: It is unknown, cannot be imported, or has no such option.
    """
    options = recipe.method.options
    if is_own_class(recipe.method.auxiliary or ""):
        raise RecipeError(
            f"method.auxiliary = {recipe.method.auxiliary!r} is not on the shelf: an auxiliary "
            f"network of your own is what a method of your own returns from build_auxiliary."
        )
    for key in ("auxiliary", "lag"):
        if getattr(recipe.method, key) is not None:
            options[key] = getattr(recipe.method, key)
    name = recipe.method.name
    return build_own_method(name, options) if is_own_class(name) else methods.build(name, options)


@dataclass(frozen=True)
class Blueprint:
    """A network cut into blocks, before any of them is built.

    Attributes:
        recipe: The run's recipe.
        network: The whole network; its parameters may be on the meta device.
        method: Gives auxiliary networks and local losses.
        ranges: The layers of every block.
        sites: Where every block stands.
        shapes: One sample's shape at the output of every layer, without N.
        facts: What it is trained on.
        num_steps: Training batches of the whole run.
    """

    recipe: Recipe
    network: Network
    method: Method
    ranges: tuple[range, ...]
    sites: tuple[BlockSite, ...]
    shapes: tuple[tuple[int, ...], ...]
    facts: DataFacts
    num_steps: int

    @classmethod
    def draw(
        cls,
        recipe: Recipe,
        network: Network,
        facts: DataFacts,
        shapes: Sequence[tuple[int, ...]] | None = None,
    ) -> Blueprint:
        """Cut ``network`` as the recipe says and check that its blocks fit together.

        Args:
            recipe: The run's recipe.
            network: The network to cut; it is not changed.
            facts: What it is trained on.
            shapes: What ``tried`` said of the network, which knows all else; asked again without.

        Raises:
            ModelError: The network cannot be cut so, or does not fit the data.
            RecipeError: The method is unknown, has no such option, trains all blocks as one that
                have replicas of their own, or has exits or context at cuts where there is none. Or
                something reads classes where the data has values.
        """
        method = build_method(recipe)
        if facts.predicts_values:
            refuse_classes(recipe, method)
        split = SplitConfig(blocks=1) if method.end_to_end else recipe.split
        if method.end_to_end and not isinstance(recipe.train.replicas, int):
            raise RecipeError(
                f"train.replicas = {list(recipe.train.replicas)} is one number a block, but method "
                f"{recipe.method.name!r} trains the whole network as one: give one number."
            )
        own = is_own_class(recipe.method.name)
        # One of the shelf reads cuts only where it is asked for something there.
        builds = method.reads_cuts and (method.has_auxiliary or not own)
        if method.end_to_end and builds and recipe.split.blocks == 1:
            shelf = "leave method.exits and method.context out"
            other = "set has_auxiliary = False in the class" if own else shelf
            raise RecipeError(
                f"method {recipe.method.name!r} has an auxiliary network or context at every cut, "
                f"but split.blocks = 1 makes none: set it to 2 or more, or {other}."
            )
        ranges = block_ranges(network, split)
        is_tried = shapes is not None
        if shapes is None:
            network, shapes = tried(network, facts.input_shape, _input_dtype(facts))
        sites = sites_of(network, ranges, shapes, facts)
        if network.layers[-1].makes is not None:
            raise ModelError(
                f"{network.layers[-1]} returns {network.layers[-1].makes.layout}, but the last "
                f"layer must return one tensor of logits: wrap it in a module that does."
            )
        if shapes[-1] != sites[-1].output_shape:
            raise _other_output(sites[-1], facts)
        if facts.num_tokens is not None and not is_tried:
            check_vocabulary(network, facts.input_shape[0], facts.num_tokens)
        num_steps = recipe.num_steps(facts.steps_per_epoch)
        return cls(recipe, network, method, ranges, sites, tuple(shapes), facts, num_steps)

    @property
    def steps_per_epoch(self) -> int:
        """Training batches of an epoch."""
        return self.facts.steps_per_epoch

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return len(self.ranges)

    @property
    def input_dtype(self) -> torch.dtype:
        """Of what the first block reads."""
        return _input_dtype(self.facts)

    @property
    def knows_end(self) -> bool:
        """Whether a step's learning rates depend on how many follow."""
        return self.rules.schedule.knows_end(self.num_blocks)

    @property
    def rules(self) -> Recipe:
        """What optimizers and schedules go by. The one block of an end-to-end method is the whole
        network, not the block 0 that an override means, so there are none."""
        return self.recipe.without_overrides() if self.method.end_to_end else self.recipe

    def stage_blocks(self, num_stages: int) -> tuple[range, ...]:
        """The blocks that each of ``num_stages`` stages runs.

        Raises:
            ModelError: There are more stages than blocks.
            RecipeError: There are fewer than blocks with unlike replicas ask for.
        """
        if num_stages > self.num_blocks:
            raise ModelError(
                f"cannot place {self.num_blocks} block(s) of method "
                f"{self.recipe.method.name!r} on {num_stages} stages (runtime.stages): "
                f"ask for {up_to(self.num_blocks, 'stage')}."
            )
        replicas = self.recipe.train.replicas
        if isinstance(replicas, int):
            return place(self.num_blocks, num_stages)
        return place_alike(replicas, num_stages)

    def input_shape(self, block_index: int) -> tuple[int, ...]:
        """One sample's shape at a block's input."""
        if block_index == 0:
            return self.sites[0].input_shape
        return self.sites[block_index - 1].feature_shape

    def layer_read_by(self, block_index: int) -> Layer:
        """The layer whose parameters come to a block over the side channel."""
        if self.method.slow_from == "last":
            return self.network.layers[-1]
        return self.network.layers[self.ranges[block_index].stop]

    def build_block(
        self, index: int, device: torch.device, recorder: Recorder | None = None
    ) -> Block:
        """Build one block on ``device``, its parameters still without values.

        With a recorder its learning is recorded and replayed.
        """
        modules = self.build_modules(index, device)
        roots = [module for _, module in modules.named()]
        if not any(p.requires_grad for _, p in modules.named_parameters()):
            raise ModelError(f"block {index} has nothing to train: choose other cuts.")
        train, rules = self.recipe.train, self.rules
        kind = Block if recorder is None else partial(RecordedBlock, recorder=recorder)
        return kind(
            self.sites[index],
            modules,
            self.method,
            build_task_loss(self.recipe, device),
            build_optimizer(rules.updates, index, roots, device),
            Schedule(rules.schedule.of_block(index), self.num_steps, self.steps_per_epoch),
            seed=train.seed,
            device=device,
            autocast=autocast_dtype(train),
            clip_norm=self.recipe.optimizer.clip_norm,
            on_nonfinite=train.on_nonfinite,
            average_decay=train.ema,
            compiles=train.compile,
            features_type=self.recipe.split.features_dtype,
        )

    def build_modules(self, index: int, device: torch.device) -> BlockModules:
        """Build what one block computes with on ``device``, without values."""
        modules = _with_memory(self.outline(index), device, self.recipe.train)
        if self.recipe.train.channels_last:
            for _, module in modules.named():
                lay_out(module)
        return modules

    def outline(self, index: int) -> BlockModules:
        """What one block computes with: the network's own layers, to be looked at only, and what
        the method adds, on the meta device."""
        if not (self.method.end_to_end and self.method.reads_cuts):
            return self._segment(self.sites[index], self.ranges[index])
        ranges = block_ranges(self.network, self.recipe.split)
        sites = sites_of(self.network, ranges, self.shapes, self.facts)
        return Chain.of([self._segment(*pair) for pair in zip(sites, ranges, strict=True)])

    def _segment(self, site: BlockSite, layers: range) -> BlockModules:
        has_auxiliary = self.method.has_auxiliary and not site.is_last
        where = f"in what it builds for block {site.block_index}"
        with without_values(), blamed(self.recipe.method.name, self.method, where):
            auxiliary = self._auxiliary(site) if has_auxiliary else None
            context = self.method.build_context(site) if site.block_index else None
        for added in filter(None, (auxiliary, context)):
            self._check_own(added, site.block_index)
        return BlockModules(tuple(self.network.layers[i] for i in layers), auxiliary, context)

    def _check_own(self, added: nn.Module, block_index: int) -> None:
        """Refuse what holds a layer of the network: it would be given memory without values."""
        names = {id(tensor): name for name, tensor in self.network.named_tensors().items()}
        for tensor in itertools.chain(added.parameters(), added.buffers()):
            if name := names.get(id(tensor)):
                raise ModelError(
                    f"what {self.recipe.method.name} adds to block {block_index} holds {name!r} of "
                    f"the network itself, which a block learns: put a copy into it (copy.deepcopy)."
                )

    def _auxiliary(self, site: BlockSite) -> nn.Module:
        index = site.block_index
        made: object = self.method.build_auxiliary(site)  # of a user's own it may be anything
        if not isinstance(made, nn.Module):
            name = self.recipe.method.name
            raise ModelError(
                f"build_auxiliary of {name} returned {made!r} for block {index}: return an "
                f"nn.Module."
            )
        for part in made.modules():
            if any(is_lazy(parameter) for parameter in part.parameters(recurse=False)):
                raise ModelError(
                    f"the auxiliary network of block {index} has a {type(part).__name__}, which "
                    f"has no shape yet: build it from site.feature_shape, {site.feature_shape}."
                )
        return made


def _input_dtype(facts: DataFacts) -> torch.dtype:
    return torch.int64 if facts.holds_tokens else torch.float32


def _other_output(last: BlockSite, facts: DataFacts) -> ModelError:
    """The error for a network whose output is not what the data has targets for."""
    what, hint = ("tokens" if last.predicts_tokens else "classes"), ""
    if facts.predicts_values:
        what = "value(s) to predict of each"
        hint = " Its targets are floating point; those of classes are whole numbers."
    elif last.feature_shape == (1,):
        hint = " Its targets are whole numbers; values to predict are floating point."
    says_of_each = last.feature_shape[:1] == last.input_shape
    if last.holds_tokens and says_of_each and not last.predicts_tokens:
        hint = (
            " It says something of every token, as 'gpt' does, but the data has one target a row: "
            "end it in a layer that reads all of them, such as by their mean."
        )
    return ModelError(
        f"the network's output has shape {last.feature_shape} a sample, but the data has "
        f"{last.num_classes} {what}: it must be {last.output_shape}.{hint}"
    )


def _with_memory(outline: BlockModules, device: torch.device, train: TrainConfig) -> BlockModules:
    """The outline with copies of its layers, all on ``device`` and without values."""
    if isinstance(outline, Chain):
        return Chain.of([_with_memory(part, device, train) for part in outline.segments])
    layers = tuple(
        replace(layer, module=with_memory(copy.deepcopy(layer.module), device))
        for layer in outline.layers
    )
    auxiliary = outline.auxiliary and with_memory(outline.auxiliary, device)
    context = outline.context and with_memory(outline.context, device)
    return BlockModules(
        layers, auxiliary, context, train.channels_last, train.activation_checkpointing
    )
