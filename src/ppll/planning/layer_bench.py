"""Runs every layer and exit of a network alone, and times it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from ppll.blocks.block import Block
from ppll.blocks.blueprint import Blueprint
from ppll.blocks.graphs import Recorder
from ppll.blocks.modules import BlockModules
from ppll.blocks.optimization import build_optimizer
from ppll.memory_layout import channels_last, lay_out
from ppll.message import FEATURES, TARGETS, Kind, Message
from ppll.methods import BlockSite, Lesson
from ppll.models.empty import with_memory
from ppll.models.initialising import initialise
from ppll.models.network import Layer, Network
from ppll.numerics import autocast_dtype
from ppll.planning.pieces import (
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
from ppll.sections import MethodConfig
from ppll.task_loss import build_task_loss

__all__ = ["WARM_UP", "LayerBench"]

WARM_UP: Final = 2
"""Rounds that do not count."""


class LayerBench:
    """A network whose parts are run alone.

    Args:
        blueprint: The network, in one block.
        fields: Of a training message, on the device.
        device: Where everything runs.
        recorder: Takes down what is timed, where training records its steps.
    """

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
                inputs = leaf(layer.main(features), needs_gradient=True)
                loss = forward(piece, inputs, self._watch, counts_time=True)
                backward(piece, loss, self._watch, first=False)
                update(piece, self._watch)

    def overheads(self, repeats: int) -> tuple[float, float]:
        """Seconds of an optimizer step, and of a whole block's turn, with next to nothing in it."""
        block, message = self._smallest_block()
        steps, turns, gradients = [], [], []
        for _ in range(WARM_UP + 3 * repeats):
            start = clock(self._device)
            block.forward(message)
            block.learn()
            turns.append(clock(self._device) - start)
            # What a recorded step reads must stay.
            gradients.append([p.grad for _, p in block.modules.named_parameters()])
            seconds, _ = self._watch.time("step", block.updates.optimizer.step)
            steps.append(seconds)
        return statistics.median(steps[WARM_UP:]), statistics.median(turns[WARM_UP:])

    def _smallest_block(self) -> tuple[Block, Message]:
        facts = self._blueprint.facts
        num_classes = facts.num_classes
        tokens = tuple(self._targets.shape[1:]) if facts.predicts_tokens else ()
        smallest = replace(facts, input_shape=tokens or (1,), num_tokens=None)
        network = Network((Layer("linear", nn.Linear(1, num_classes)),))
        recipe = self._blueprint.recipe
        tiny = Blueprint.draw(
            recipe.model_copy(update={"method": MethodConfig(name="backprop")}),
            network,
            smallest,
            [(*tokens, num_classes)],
        ).build_block(0, self._device, self._recorder)
        tiny.modules.load(dict(BlockModules(network.layers, None).named_tensors()))
        inputs = torch.zeros(len(self._targets), *tokens, 1, device=self._device)
        tensors = {FEATURES: inputs, TARGETS: self._targets}
        return tiny, Message(kind=Kind.TRAIN, sequence=0, step=1, tensors=tensors)

    def _layer(self, layer: Layer) -> Piece:
        module = self._blueprint.network.with_first_values(layer, 0)
        self._prepare(module)
        return Piece(self._autocast(module), module, self._optimizer(module), layer.makes)

    def _exit(self, index: int) -> Piece:
        shape = self._blueprint.shapes[index]
        if index == len(self.layers) - 1:
            task_loss = build_task_loss(self._blueprint.recipe, self._device)
            nothing = nn.Identity()
            loss = self._autocast(lambda logits: task_loss(logits, self._targets))
            return Piece(loss, nothing, None)
        piece = self._auxiliary(index)
        parameters = tuple(p.shape for p in piece.module.parameters())
        structure = (shape, repr(piece.module), parameters)
        return self._exits_by_structure.setdefault(structure, piece)

    def sites(self) -> list[BlockSite]:
        """Where a block would stand that ends with each layer and is not the last."""
        (whole,) = self._blueprint.sites
        layers, shapes = self._blueprint.network.layers, self._blueprint.shapes
        return [
            replace(
                whole,
                num_blocks=2,
                feature_shape=shape,
                layers_behind=layers[index + 1 :],
                shapes_behind=shapes[index + 1 :],
            )
            for index, shape in enumerate(shapes)
        ]

    def _auxiliary(self, index: int) -> Piece:
        method = self._blueprint.method
        task_loss = build_task_loss(self._blueprint.recipe, self._device)
        module = with_memory(method.build_auxiliary(self.sites()[index]), torch.device("cpu"))
        initialise(module, "auxiliary", 0, self._blueprint.network.held_values())
        self._prepare(module)

        def run(features: Tensor) -> Tensor:
            lesson = Lesson(self._inputs, features, self._targets, self._fields)
            return method.local_loss(module, lesson, task_loss).value

        return Piece(self._autocast(run), module, self._optimizer(module))

    def _prepare(self, module: nn.Module) -> None:
        module.to(self._device).train()
        if self._blueprint.recipe.train.channels_last:
            lay_out(module)

    def _autocast(self, run: Callable[[Any], Any]) -> Callable[[Any], Any]:
        dtype = autocast_dtype(self._blueprint.recipe.train)

        def cast(inputs: Any) -> Any:
            with torch.autocast(self._device.type, dtype, enabled=dtype is not None):
                return run(inputs)

        return cast

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer | None:
        if not any(p.requires_grad for p in module.parameters()):
            return None
        return build_optimizer(self._blueprint.recipe.updates, 0, [module], self._device)
