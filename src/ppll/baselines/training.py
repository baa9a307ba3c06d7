"""A recipe's own network, data, loss, optimizer and schedule, for a rival to train.

All parameters start from the values that PPLL starts from: they are a function of the recipe's
seed and their name, wherever the network is cut; or what a function of the user's own, or a
library, makes of that seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ppll.baselines.backends import backend_of
from ppll.baselines.chunk import Chunk, autocast
from ppll.baselines.feed import Feed, check_batches
from ppll.baselines.systems import Layout
from ppll.baselines.work import Batch, Part, Workload
from ppll.blocks.block import NonFiniteLoss
from ppll.blocks.blueprint import Blueprint, block_ranges
from ppll.blocks.optimization import Schedule, build_optimizer
from ppll.config import Recipe
from ppll.data import load_batches, load_dataset, prepare
from ppll.data.preparation import facts_of
from ppll.data_facts import DataFacts
from ppll.devices import check_devices, device_of
from ppll.errors import RecipeError
from ppll.job import draw_blueprint
from ppll.losses.classification import num_correct
from ppll.message import FEATURES, TARGETS
from ppll.models.names import qualified
from ppll.models.network import Network
from ppll.models.structures import main_of
from ppll.numerics import set_numerics
from ppll.randomness import fold
from ppll.sections import MethodConfig, SplitConfig
from ppll.task_loss import build_task_loss

__all__ = ["RecipeWork", "accuracy_of"]

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class RecipeWork(Workload):
    """What a recipe says, trained end to end.

    The sections ``split`` and ``method`` do not matter to a rival, nor do overrides of optimizer
    and schedule for single blocks. Of ``runtime``, ``devices``, ``data`` and ``capacity`` do, and
    on GPUs ``log_every_steps``, after which losses are looked at. Batch norm sees a micro-batch
    where PPLL sees a batch, and dropout draws other masks; without both a rival's updates are those
    of plain backpropagation.

    Attributes:
        recipe: The recipe.
        cuts: First layer of every chunk but the first; none for chunks of equal length.
        facts: What every rank must know of the data; found by ``prepared``.
        shapes: One sample's shape at the output of every layer; found by ``prepared``.
        dtypes: Type of every layer's output; found by ``prepared``.
    """

    recipe: Recipe
    cuts: tuple[int, ...] | None = None
    facts: DataFacts | None = None
    shapes: tuple[tuple[int, ...], ...] | None = None
    dtypes: tuple[torch.dtype, ...] = ()

    def prepared(self, layout: Layout) -> Self:
        """A copy that knows the data and the network's shapes."""
        _check_recipe(self.recipe)
        self._check_devices(layout)
        data = prepare(load_dataset(self.recipe.data), self.recipe.data)
        check_batches(self.recipe, data, layout)
        facts = facts_of(data)
        work = replace(self, facts=facts)
        blueprint = work.blueprint()
        if layout.num_batches > blueprint.num_steps:
            raise RecipeError(
                f"the recipe trains on {blueprint.num_steps} batches, found {layout.num_batches}: "
                f"ask for fewer, or raise train.epochs or train.max_steps."
            )
        work.ranges(blueprint.network, layout)
        dtypes = _dtypes(blueprint, self.devices(layout)[0])
        return replace(work, shapes=blueprint.shapes, dtypes=dtypes)

    def devices(self, layout: Layout) -> tuple[torch.device, ...]:
        """What every rank computes on: ``runtime.devices``, as the stage of that number would."""
        return tuple(device_of(self.recipe.runtime, rank) for rank in range(layout.num_ranks))

    def _check_devices(self, layout: Layout) -> None:
        # A rival may have more ranks than the recipe has blocks.
        runtime = self.recipe.runtime.model_copy(update={"stages": layout.num_ranks})
        check_devices(self.recipe.model_copy(update={"runtime": runtime}))
        backend_of(layout.system.name, self.devices(layout))

    def part(self, layout: Layout, rank: int) -> Part:
        """The rank's layers with their first values, its optimizer and its data."""
        return _RecipePart(self, layout, rank)

    def blueprint(self) -> Blueprint:
        """The network: one of our shelf without values, others with those that they begin with."""
        assert self.facts is not None
        # As PPLL's own control has it: one block, whatever the recipe's method says.
        recipe = self.recipe.model_copy(update={"method": MethodConfig(name="backprop")})
        return draw_blueprint(recipe, self.facts, None, self.shapes)

    def ranges(self, network: Network, layout: Layout) -> tuple[range, ...]:
        """The layers of every chunk.

        Raises:
            RecipeError: The network cannot be cut into as many chunks as the rival needs.
        """
        if layout.system.kind != "pipeline":
            return (range(len(network.layers)),)
        ranges = self._cut(network, layout)
        for layer in (network.layers[chunk.stop - 1] for chunk in ranges):
            if layer.makes is not None:
                raise RecipeError(
                    f"{layout.system.name} sends one tensor from rank to rank, but {layer} returns "
                    f"{layer.makes.layout}: compare with ddp and backprop."
                )
        return ranges

    def _cut(self, network: Network, layout: Layout) -> tuple[range, ...]:
        num_layers, num_chunks = len(network.layers), layout.num_chunks
        if self.cuts is None:
            body = num_layers - network.num_stem - network.num_head
            _check_enough_layers(layout, body)
            return block_ranges(network, SplitConfig(blocks=num_chunks))
        bounds = (0, *self.cuts, num_layers)
        if len(self.cuts) != num_chunks - 1 or any(a >= b for a, b in pairwise(bounds)):
            _check_enough_layers(layout, num_layers)
            raise RecipeError(
                f"{layout.system.name} on {layout.num_ranks} ranks needs {num_chunks - 1} "
                f"ascending cuts from 1 to {num_layers - 1}, found {list(self.cuts)}."
            )
        return tuple(range(a, b) for a, b in pairwise(bounds))


def _check_enough_layers(layout: Layout, num_layers: int) -> None:
    if layout.num_chunks > num_layers:
        most = num_layers // layout.system.chunks_per_rank
        raise RecipeError(
            f"{layout.system.name} on {layout.num_ranks} ranks needs {layout.num_chunks} chunks, "
            f"but there are only {num_layers} layers to deal: ask for at most {most} ranks, or "
            f"take a deeper network."
        )


def _check_recipe(recipe: Recipe) -> None:
    if recipe.model.weights is not None:
        raise RecipeError("model.weights: a rival starts from the recipe's seed; leave it out.")
    if recipe.train.ema:
        raise RecipeError("train.ema: a rival keeps no averages of its weights; set it to 0.")
    if recipe.most_replicas > 1:
        raise RecipeError("train.replicas: a comparison is of one pipeline; set it to 1.")
    if recipe.train.compile:
        raise RecipeError("train.compile: rivals run uncompiled; set it to false.")
    if recipe.train.cuda_graphs:
        raise RecipeError("train.cuda_graphs: rivals record no graphs; set it to false.")
    if recipe.train.channels_last:
        raise RecipeError(
            "train.channels_last: the transport of a rival keeps no memory order; set it to false."
        )
    if recipe.train.precision == "fp16":
        raise RecipeError(
            'train.precision = "fp16": a rival scales no loss; choose "bf16" or "float32".'
        )
    if recipe.train.on_nonfinite == "skip":
        raise RecipeError(
            'train.on_nonfinite = "skip": the ranks of a rival do not know each other\'s loss '
            'before they update; choose "stop" or "ignore".'
        )


def _dtypes(blueprint: Blueprint, device: torch.device) -> tuple[torch.dtype, ...]:
    """Type of every layer's output, found by a trial run where it is not plain: what runs in which
    type depends on the device."""
    if blueprint.recipe.train.precision == "float32":
        return (torch.float32,) * len(blueprint.network.layers)
    dtypes = []
    shape = (1, *blueprint.input_shape(0))
    features: Any = torch.zeros(shape, dtype=blueprint.input_dtype, device=device)
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        for layer in blueprint.network.layers:
            module = blueprint.network.with_first_values(layer, 0).to(device).eval()
            with autocast(blueprint.recipe, device):
                features = module(features)
            dtypes.append(main_of(features, layer.makes).dtype)
    return tuple(dtypes)


class _RecipePart(Part):
    """One rank's chunks of a recipe's network, with the optimizer over all of them."""

    def __init__(self, work: RecipeWork, layout: Layout, rank: int) -> None:
        recipe = work.recipe.without_overrides()
        self.device = work.devices(layout)[rank]
        set_numerics(recipe.train, self.device)
        if self.device.type == "cuda":
            self.looks_every = recipe.runtime.log_every_steps
        torch.manual_seed(fold(recipe.train.seed, "baseline", rank) & 0xFFFFFFFF)
        self._work, self._layout = work, layout
        blueprint = work.blueprint()  # Which may hold the whole network, and is not kept.
        self._input_shape, self._input_dtype = blueprint.input_shape(0), blueprint.input_dtype
        self._ranges = work.ranges(blueprint.network, layout)
        self._paths = [layer.path for layer in blueprint.network.layers]
        self.chunks = {i: self._chunk(blueprint.network, i) for i in layout.chunks_of(rank)}
        self._parameters = [p for _, p in self._named_parameters() if p.requires_grad]
        self._optimizer = None
        if self._parameters:
            self._optimizer = build_optimizer(recipe.optimizer, 0, self.chunks.values())
        steps = blueprint.num_steps, blueprint.steps_per_epoch
        self._schedule = Schedule(recipe.schedule, *steps)
        self._loss = build_task_loss(recipe, self.device)
        self._feed = Feed(recipe, layout, rank, self.device)

    def batches(self) -> Iterator[Batch]:
        """The recipe's batches, or what the rank needs of them."""
        return self._feed.batches()

    def examples(self, chunk: int) -> tuple[Tensor, Tensor]:
        """Features before and behind a chunk, of a micro-batch."""
        layers = self._ranges[chunk]
        return self._example(layers.start - 1), self._example(layers.stop - 1)

    def _example(self, layer: int) -> Tensor:
        assert self._work.shapes is not None
        num_samples = self._work.recipe.data.batch_size // self._layout.num_slices
        if layer < 0:
            return torch.zeros((num_samples, *self._input_shape), dtype=self._input_dtype)
        return torch.empty((num_samples, *self._work.shapes[layer]), dtype=self._work.dtypes[layer])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The recipe's loss."""
        with autocast(self._work.recipe, self.device):
            return self._loss(outputs, targets)

    def check(self, loss: float, step: int) -> None:
        """Stop the run where the recipe says so.

        Raises:
            NonFiniteLoss: The loss is infinite or not a number.
        """
        if self._work.recipe.train.on_nonfinite == "stop" and not math.isfinite(loss):
            raise NonFiniteLoss(
                f"the loss is {loss} in batch {step}: lower optimizer.lr or clip gradients."
            )

    def update(self, step: int) -> None:
        """Clip by the norm over all ranks, set the learning rate, update, clear the gradients."""
        if self._work.recipe.optimizer.clip_norm is not None:
            self._clip(self._work.recipe.optimizer.clip_norm)
        if self._optimizer is not None:
            for group in self._optimizer.param_groups:
                group["lr"] = self._work.recipe.optimizer.lr * self._schedule.factor(step)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def _clip(self, clip_norm: float) -> None:
        norm = nn.utils.get_total_norm(p.grad for p in self._parameters if p.grad is not None)
        if self._layout.system.kind == "pipeline":
            # A rank without parameters has a norm on the processor.
            squared = norm.square().reshape(1).to(self.device)
            dist.all_reduce(squared)
            norm = squared.sqrt().squeeze()
        nn.utils.clip_grads_with_norm_(self._parameters, clip_norm, norm)

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers of the rank's layers."""
        return {
            qualified(name, key): value
            for name, module in self._named_layers()
            for key, value in module.state_dict().items()
        }

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of the rank's layers, before they are clipped."""
        return {n: p.grad.clone() for n, p in self._named_parameters() if p.grad is not None}

    def _chunk(self, network: Network, index: int) -> Chunk:
        recipe = self._work.recipe
        layers = [
            network.with_first_values(network.layers[i], recipe.train.seed)
            for i in self._ranges[index]
        ]
        return Chunk(layers, recipe, is_first=index == 0).to(self.device)

    def _named_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Layers by what their parameters' names begin with in the whole network."""
        for index, chunk in self.chunks.items():
            assert isinstance(chunk, Chunk)
            for number, module in zip(self._ranges[index], chunk.layers, strict=True):
                yield self._paths[number], module

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for prefix, module in self._named_layers():
            for name, parameter in module.named_parameters():
                yield qualified(prefix, name), parameter


def accuracy_of(recipe: Recipe, weights: Mapping[str, Tensor]) -> float:
    """Share of the recipe's test samples that a network with these weights gets right, 0 to 1.

    Args:
        recipe: Names the network and the data.
        weights: Parameters and buffers by their name in the whole network.
    """
    batches = load_batches(recipe.data, seed=recipe.train.seed)
    network = RecipeWork(recipe, facts=facts_of(batches.data)).blueprint().network
    model = nn.Sequential()
    for layer in network.layers:
        module = network.with_first_values(layer, recipe.train.seed).eval()
        values = {key: weights[qualified(layer.path, key)] for key in module.state_dict()}
        module.load_state_dict(values)
        model.append(module)
    correct = samples = 0
    with torch.no_grad(), autocast(recipe, _CPU):
        for batch in batches.evaluation_batches("test"):
            correct += int(num_correct(model(batch[FEATURES]), batch[TARGETS]))
            samples += batch[TARGETS].numel()
    return correct / samples
