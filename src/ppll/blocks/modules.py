"""What a block computes with, under the names of the un-split network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from ppll.blocks.recomputing import recomputed
from ppll.errors import ModelError
from ppll.memory_layout import channels_last
from ppll.message import FEATURES, PREVIOUS
from ppll.models.names import qualified
from ppll.models.network import Layer
from ppll.models.structures import Structure, changed_error

__all__ = ["AUXILIARY", "CONTEXT", "BlockModules", "Chain", "named_tensors"]

AUXILIARY: Final = "auxiliary"
"""First part of the names of auxiliary networks' parameters and buffers."""
CONTEXT: Final = "context"
"""First part of the names of what adds to a block's input."""


@dataclass(frozen=True)
class BlockModules:
    """What a block computes with.

    Attributes:
        layers: Consecutive layers of the network.
        auxiliary: The method's auxiliary network; none in the last block.
        context: Adds to the block's input from a message's fields; none for most methods.
        channels_last: Whether maps lie in memory with their channels last.
        recomputes: Whether a layer's activations are computed again in the backward pass.
    """

    layers: tuple[Layer, ...]
    auxiliary: nn.Module | None
    context: nn.Module | None = None
    channels_last: bool = False
    recomputes: bool = False

    def __call__(
        self, inputs: Tensor, fields: Mapping[str, Tensor]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The block's features (N, ...) from its input (N, ...) and a message's fields.

        What travels beside the features comes with them, by the names of the fields.

        Raises:
            ModelError: The last layer's output is not put together as in the trial run.
        """
        if self.channels_last:
            inputs = channels_last(inputs)
        features: Any = inputs if self.context is None else inputs + self.context(fields)
        if (reads := self.layers[0].reads) is not None:
            features = reads.put_together(features, fields)
        for layer in self.layers:
            if self.recomputes and torch.is_grad_enabled():
                features = recomputed(layer.module, features)
            else:
                features = layer.module(features)
        return _taken_apart(self.layers[-1], features)

    def named(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules with the prefix of their parameters' names.

        Layers keep the names of the un-split network; the auxiliary network is named by the layer
        that it stands behind, the context by the one that it stands before, so that they are found
        again wherever the other cuts are.
        """
        if self.context is not None:
            yield qualified(CONTEXT, self.layers[0].name), self.context
        for layer in self.layers:
            yield layer.path, layer.module
        if self.auxiliary is not None:
            yield self.auxiliary_name, self.auxiliary

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of a message that the layers read."""
        return _fields_of(self.layers[0].reads)

    @property
    def makes(self) -> tuple[str, ...]:
        """The fields of a message that the layers make."""
        return _fields_of(self.layers[-1].makes)

    def auxiliaries(self) -> tuple[nn.Module, ...]:
        """The auxiliary networks: one at most, but for a chain."""
        return () if self.auxiliary is None else (self.auxiliary,)

    def contexts(self) -> tuple[nn.Module, ...]:
        """What adds to inputs: one at most, but for a chain."""
        return () if self.context is None else (self.context,)

    @property
    def auxiliary_name(self) -> str:
        """Prefix of the auxiliary network's names."""
        return qualified(AUXILIARY, self.layers[-1].name)

    @property
    def slow_name(self) -> str:
        """What a checkpoint calls the parameters of the next block that are on their way."""
        return f"{self.auxiliary_name}.slow"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of layers and auxiliary network."""
        for prefix, module in self.named():
            for name, parameter in module.named_parameters():
                yield qualified(prefix, name), parameter

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers of layers and auxiliary network."""
        for prefix, module in self.named():
            yield from named_tensors(prefix, module).items()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over saved parameters and buffers.

        Raises:
            ModelError: A tensor is missing or has another shape.
        """
        self.check(tensors)
        with torch.no_grad():
            for name, tensor in self.named_tensors():
                tensor.copy_(tensors[name])

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse saved tensors that are not those of the block.

        Raises:
            ModelError: A tensor is missing or has another shape.
        """
        for name, tensor in self.named_tensors():
            saved = tensors.get(name)
            if saved is None or saved.shape != tensor.shape:
                found = "missing" if saved is None else f"of shape {tuple(saved.shape)}"
                wanted = tuple(tensor.shape)
                raise ModelError(f"{name} is {found}, the network needs shape {wanted}.")

    def transient_names(self) -> frozenset[str]:
        """Names of buffers that do not belong in a state dict."""
        return frozenset(
            qualified(prefix, qualified(inner, name))
            for prefix, module in self.named()
            for inner, owner in module.named_modules()
            for name in owner._non_persistent_buffers_set
        )


@dataclass(frozen=True)
class Chain(BlockModules):
    """What several blocks would compute with, one behind another as a single block.

    An end-to-end method learns in it the network, context and heads that a local method has. With
    heads it makes the logits (N, exits, classes) of all exits, the final output last.

    Attributes:
        segments: The parts, each with the auxiliary network behind it and the context before it.
    """

    segments: tuple[BlockModules, ...] = ()

    @classmethod
    def of(cls, segments: Sequence[BlockModules]) -> Chain:
        """The chain of some segments, at least one."""
        layers = tuple(layer for segment in segments for layer in segment.layers)
        return cls(layers, None, segments=tuple(segments))

    def __call__(
        self, inputs: Tensor, fields: Mapping[str, Tensor]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Logits (N, classes), or (N, exits, classes) where there are heads."""
        exits: list[Tensor] = []
        before: dict[str, Tensor] = {}
        for segment in self.segments:
            features, beside = segment(inputs, {**fields, **before})
            exits += [head(features) for head in segment.auxiliaries()]
            before, inputs = {PREVIOUS: inputs, **beside}, features
        return torch.stack([*exits, inputs], dim=1) if exits else inputs, {}

    def named(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules of all segments, as each names them."""
        return (pair for segment in self.segments for pair in segment.named())

    def auxiliaries(self) -> tuple[nn.Module, ...]:
        """The heads of all segments."""
        return tuple(head for segment in self.segments for head in segment.auxiliaries())

    def contexts(self) -> tuple[nn.Module, ...]:
        """The context of all segments."""
        return tuple(context for segment in self.segments for context in segment.contexts())


def _fields_of(structure: Structure | None) -> tuple[str, ...]:
    return (FEATURES,) if structure is None else (FEATURES, *structure.names)


def _taken_apart(layer: Layer, output: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The main tensor of what a layer made, and the others by the names of their fields."""
    if layer.makes is None and isinstance(output, Tensor):
        return output, {}
    parts = None if layer.makes is None else layer.makes.taken_apart(output)
    if parts is None:
        raise changed_error(str(layer), layer.makes, output)
    return parts


def named_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a layer or an auxiliary network by their whole names."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {qualified(prefix, name): tensor for name, tensor in tensors.items()}
