"""Measure what the layers and auxiliary networks of a recipe take on this machine.

Layers run in the order and with the sizes of training, one after the other, so that caches are as
they are there. Every repeat runs the network twice: once with the gradients of all inputs, once
with those of the parameters alone, as in the first layer of a block. Where training records CUDA
graphs, what is measured are replays: what a GPU takes when no host is in its way.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from ppll.block import Block
from ppll.block_modules import BlockModules
from ppll.blueprint import Blueprint, build_method
from ppll.config import Recipe
from ppll.costs import Costs, ExitCosts, LayerCosts, measured_for
from ppll.data import Loader, load_dataset, prepare
from ppll.data.home import home_of
from ppll.data.preparation import facts_of
from ppll.devices import check_devices, describe_device, device_of
from ppll.environment import describe_processor
from ppll.errors import RecipeError
from ppll.graphs import Recorder
from ppll.job import draw_blueprint
from ppll.lean import FeaturesType, num_bytes
from ppll.memory_layout import channels_last, lay_out
from ppll.message import FEATURES, TARGETS, Kind, Message
from ppll.methods import BlockSite, Lesson
from ppll.models.empty import with_memory
from ppll.models.network import Layer, Network, initialise
from ppll.numerics import autocast_dtype, set_numerics, torch_as_new
from ppll.optimization import build_optimizer
from ppll.pieces import (
    Piece,
    RecordedWatch,
    Times,
    Watch,
    backward,
    clock,
    forward,
    leaf,
    update,
)
from ppll.sections import MethodConfig, SplitConfig
from ppll.streams import make_streams

__all__ = ["measure"]

_WARM_UP: Final = 2


def measure(recipe: Recipe, *, repeats: int = 7) -> Costs:
    """Measure every layer, and the auxiliary network at every possible cut.

    Args:
        recipe: Its data is loaded; network, method, batch size, precision and optimizer count.
        repeats: How often everything is measured, besides a warm-up.

    Raises:
        UsageError: The recipe's network or data cannot be had.
    """
    if build_method(recipe).end_to_end:
        raise RecipeError(
            f"method.name = {recipe.method.name!r} trains the network as one block, so there is "
            f"nothing to plan: choose another method. Plans show end-to-end rivals beside it."
        )
    if recipe.train.compile:
        raise RecipeError(
            "train.compile: layers are measured one by one, but compiled code spans the layers of "
            "a block: set it to false."
        )
    # Wherever the recipe cuts, every cut is measured.
    split = SplitConfig(blocks=1, features_dtype=recipe.split.features_dtype)
    recipe = recipe.model_copy(update={"split": split})
    check_devices(recipe)
    with torch_as_new():
        device = device_of(recipe.runtime, 0)
        set_numerics(recipe.train, device)
        return _measure(recipe, device, repeats)


def _measure(recipe: Recipe, device: torch.device, repeats: int) -> Costs:
    data = prepare(load_dataset(recipe.data), recipe.data)
    blueprint = draw_blueprint(recipe, facts_of(data), None)
    loader = Loader(data, seed=recipe.train.seed, fields=blueprint.method.fields)
    loader.move_to(home_of(data, recipe.runtime.data, device))
    message, load_s = _message(recipe, loader)
    streams = make_streams(recipe, device, 1)
    bench = _Bench(
        blueprint, {n: t.to(device) for n, t in message.items()}, device, streams.recorder(0)
    )
    with streams.home():
        for repeat in range(_WARM_UP + repeats):
            if repeat == _WARM_UP:
                bench.begin()
            bench.run_layers()
            bench.run_exits()
        step_s, block_s = bench.overheads(repeats)
    network = blueprint.network
    return Costs(
        recipe=measured_for(recipe),
        device=describe_device(device, describe_processor()),
        message_size=len(message[TARGETS]),
        layers=tuple(
            _layer_costs(layer.name, piece, step_s, recipe.split.features_dtype)
            for layer, piece in zip(network.layers, bench.layers, strict=True)
        ),
        exits=tuple(_exit_costs(piece, step_s) for piece in bench.exits),
        block_s=block_s,
        load_s=load_s,
        num_stem=network.num_stem,
        num_head=network.num_head,
    )


def _message(recipe: Recipe, loader: Loader) -> tuple[dict[str, Tensor], float]:
    """The fields of a training message, and the seconds that it takes to make them."""
    first = loader.train_batch(0, 0)  # It fills caches.
    device = first[FEATURES].device
    start = clock(device)
    batch = loader.train_batch(0, 0)
    seconds = (clock(device) - start) / (recipe.train.accumulate * recipe.train.replicas)
    size = recipe.message_size
    return {name: tensor[:size].clone() for name, tensor in batch.items()}, seconds


class _Bench:
    def __init__(
        self,
        blueprint: Blueprint,
        fields: dict[str, Tensor],
        device: torch.device,
        recorder: Recorder | None,
    ) -> None:
        self._blueprint = blueprint
        self._device = device
        self._recorder = recorder
        self._watch = Watch(device)
        self._fields = fields
        self._inputs = fields[FEATURES]
        if blueprint.recipe.train.channels_last:
            self._inputs = channels_last(self._inputs)
        self._targets = fields[TARGETS]
        self.layers = [self._layer(layer) for layer in blueprint.network.layers]
        self._exits_by_structure: dict[tuple[object, ...], Piece] = {}
        self.exits = [self._exit(i) for i in range(len(self.layers))]

    def begin(self) -> None:
        """Begin to count; to record, where steps are recorded in training."""
        if self._recorder is not None:
            self._watch = RecordedWatch(self._device, self._recorder)
        for piece in [*self.layers, *self.exits]:
            piece.times = Times()

    def run_layers(self) -> None:
        """Forward through all layers and back again, with and without gradients of inputs."""
        for first in (False, True):
            features, outputs = self._inputs, []
            for piece in self.layers:
                inputs = leaf(features, needs_gradient=not first)
                output = forward(piece, inputs, self._watch, counts_time=not first)
                outputs.append(output)
                features = output
            for piece, output in zip(reversed(self.layers), reversed(outputs), strict=True):
                backward(piece, output, self._watch, first=first)
                if not first:
                    update(piece, self._watch)

    def run_exits(self) -> None:
        """Every exit on the features that its layer makes, and back to them."""
        done: set[int] = set()
        features = self._inputs
        for layer, piece in zip(self.layers, self.exits, strict=True):
            with torch.no_grad():
                features = layer.run(features)
            if id(piece) not in done:
                done.add(id(piece))
                inputs = leaf(features, needs_gradient=True)
                loss = forward(piece, inputs, self._watch, counts_time=True)
                backward(piece, loss, self._watch, first=False)
                update(piece, self._watch)

    def overheads(self, repeats: int) -> tuple[float, float]:
        """Seconds of an optimizer step, and of a whole block's turn, with next to nothing in it."""
        block, message = self._smallest_block()
        steps, turns, gradients = [], [], []
        for _ in range(_WARM_UP + 3 * repeats):
            start = clock(self._device)
            block.forward(message)
            block.learn()
            turns.append(clock(self._device) - start)
            # What a recorded step reads must stay.
            gradients.append([p.grad for _, p in block.modules.named_parameters()])
            seconds, _ = self._watch.time("step", block.optimizer.step)
            steps.append(seconds)
        return statistics.median(steps[_WARM_UP:]), statistics.median(turns[_WARM_UP:])

    def _smallest_block(self) -> tuple[Block, Message]:
        num_classes = self._blueprint.sites[-1].num_classes
        tokens = tuple(self._targets.shape[1:])
        network = Network((Layer("linear", nn.Linear(1, num_classes)),))
        recipe = self._blueprint.recipe
        tiny = Blueprint.draw(
            recipe.model_copy(update={"method": MethodConfig(name="backprop")}),
            network,
            input_shape=tokens or (1,),
            num_classes=num_classes,
            steps_per_epoch=1,
            shapes=[(*tokens, num_classes)],
            holds_tokens=bool(tokens),
        ).build_block(0, self._device, self._recorder)
        tiny.modules.load(dict(BlockModules(network.layers, None).named_tensors()))
        inputs = torch.zeros(*self._targets.shape, 1, device=self._device)
        tensors = {FEATURES: inputs, TARGETS: self._targets}
        return tiny, Message(kind=Kind.TRAIN, sequence=0, step=1, tensors=tensors)

    def _layer(self, layer: Layer) -> Piece:
        module = self._blueprint.network.with_first_values(layer, 0)
        self._prepare(module)
        return Piece(self._autocast(module), module, self._optimizer(module))

    def _exit(self, index: int) -> Piece:
        shape = self._blueprint.shapes[index]
        if index == len(self.layers) - 1:
            task_loss = self._blueprint.build_task_loss()
            nothing = nn.Identity()
            return Piece(lambda logits: task_loss(logits, self._targets), nothing, None)
        piece = self._auxiliary(index)
        parameters = tuple(p.shape for p in piece.module.parameters())
        structure = (shape, repr(piece.module), parameters)
        return self._exits_by_structure.setdefault(structure, piece)

    def _auxiliary(self, index: int) -> Piece:
        last = self._blueprint.sites[-1]
        site = BlockSite(
            0,
            2,
            last.input_shape,
            self._blueprint.shapes[index],
            last.num_classes,
            last.input_shape,
            self._blueprint.network.layers[index + 1 :],
            self._blueprint.shapes[index + 1 :],
            holds_tokens=last.holds_tokens,
        )
        method, task_loss = self._blueprint.method, self._blueprint.build_task_loss()
        module = with_memory(method.build_auxiliary(site), torch.device("cpu"))
        initialise(module, "auxiliary", 0)
        self._prepare(module)

        def run(features: Tensor) -> Tensor:
            lesson = Lesson(self._inputs, features, self._targets, self._fields)
            return method.local_loss(module, lesson, task_loss).value

        return Piece(self._autocast(run), module, self._optimizer(module))

    def _prepare(self, module: nn.Module) -> None:
        module.to(self._device).train()
        if self._blueprint.recipe.train.channels_last:
            lay_out(module)

    def _autocast(self, run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        dtype = autocast_dtype(self._blueprint.recipe.train)

        def cast(inputs: Tensor) -> Tensor:
            with torch.autocast(self._device.type, dtype, enabled=dtype is not None):
                return run(inputs)

        return cast

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer | None:
        if not any(p.requires_grad for p in module.parameters()):
            return None
        return build_optimizer(self._blueprint.recipe.updates, 0, [module], self._device)


def _layer_costs(
    name: str, piece: Piece, step_s: float, features_type: FeaturesType | None
) -> LayerCosts:
    times = piece.times
    both = [f + b for f, b in zip(times.forward, times.backward, strict=True)]
    return LayerCosts(
        name=name,
        forward_s=statistics.median(times.forward),
        backward_s=statistics.median(times.backward),
        backward_first_s=min(
            statistics.median(times.backward_first), statistics.median(times.backward)
        ),
        update_s=_above(times.update, step_s),
        features_bytes=_sent_bytes(piece, features_type),
        activation_bytes=piece.activation_bytes,
        parameter_bytes=piece.parameter_bytes,
        spread=_spread(both),
    )


def _sent_bytes(piece: Piece, features_type: FeaturesType | None) -> int:
    """What its output takes on the way to the next block."""
    if features_type is None:
        return piece.features_bytes
    return sum(num_bytes(piece.features_shape, features_type).values())


def _exit_costs(piece: Piece, step_s: float) -> ExitCosts:
    return ExitCosts(
        forward_s=statistics.median(piece.times.forward),
        backward_s=statistics.median(piece.times.backward),
        update_s=_above(piece.times.update, step_s),
        activation_bytes=piece.activation_bytes,
        parameter_bytes=piece.parameter_bytes,
    )


def _above(update: Sequence[float], step_s: float) -> float:
    """The part of an optimizer step that grows with what is updated."""
    return max(0.0, statistics.median(update) - step_s) if update else 0.0


def _spread(values: Sequence[float]) -> float:
    quarters = statistics.quantiles(values, n=4) if len(values) > 1 else [0.0, 1.0, 0.0]
    median = statistics.median(values)
    return (quarters[2] - quarters[0]) / median if median else 0.0
