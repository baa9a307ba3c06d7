"""What every model is: an ordered row of layers that can be cut between any two.

A layer is the smallest piece that is never cut. It takes one tensor whose first dimension is the
batch and returns one, or several that are put together; the next layer takes that. So any
consecutive layers make a block.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ppll.errors import ModelError
from ppll.models.empty import with_memory
from ppll.models.initialising import initialise
from ppll.models.names import qualified
from ppll.models.structures import Structure

__all__ = [
    "Layer",
    "Network",
]

_KEPT_NAMES: Final = ("auxiliary", "context")


@dataclass(frozen=True)
class Layer:
    """The smallest piece of a network that is never cut.

    Attributes:
        name: What it is called, such as ``"stage1_0"``, and its parameters' names begin with;
            empty, for no prefix, where the layer is the whole network.
        module: What it computes: one tensor (N, ...) to one floating tensor (N, ...), or tensors
            that are put together.
        prefix: What its parameters' names begin with where that is not ``name``, as in a part that
            was cut out of a model.
        reads: How its input is put together, once the network was tried; none for one tensor.
        makes: The same of its output.
    """

    name: str
    module: nn.Module
    prefix: str | None = None
    reads: Structure | None = None
    makes: Structure | None = None

    @property
    def path(self) -> str:
        """What its parameters' names begin with in the un-split model."""
        return self.name if self.prefix is None else self.prefix

    def __str__(self) -> str:
        return f"layer {self.name!r} ({type(self.module).__name__})"

    def check_copied(self, chosen_by: str = "method.name") -> None:
        """Let a layer pass whose copy may stand in an auxiliary network, which has the main tensor
        of the features and nothing beside it.

        Args:
            chosen_by: The recipe's key whose choice makes the copy.

        Raises:
            ModelError: The layer reads or makes more than one tensor.
        """
        if structure := self.reads or self.makes:
            does = "reads" if self.reads else "returns"
            raise ModelError(
                f"{self} {does} {structure.layout}, so no copy of it can stand in an auxiliary "
                f"network, which has one tensor: choose another {chosen_by}."
            )


@dataclass(frozen=True)
class Network:
    """A whole model as a row of layers.

    Attributes:
        layers: In forward order; no two share a module, a parameter or a buffer.
        num_stem: Leading layers that even cuts give to the first block and do not count.
        num_head: Trailing layers that go with the last block and do not count.
        original: The model that the row was cut from, if it was: the layers are parts of it, and
            hold the values that it starts from.

    Raises:
        ModelError: The row is empty, a name cannot stand, something is not a module, two layers
            share something, or one keeps a state that is no dense tensor or has no shape.
    """

    layers: tuple[Layer, ...]
    num_stem: int = 0
    num_head: int = 0
    original: nn.Module | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.layers:
            raise ModelError("a network needs at least one layer, found none.")
        _check_counts(self)
        _check_names(self.layers)
        _check_state(self.layers)
        _check_nothing_shared(self.layers)

    def as_module(self) -> nn.Module:
        """The un-split model: the layers themselves, one after the other, not copies of them.

        Its parameters are called ``f"{layer.path}.{parameter}"``.
        """
        if self.original is not None:
            return self.original
        if self.layers[0].name == "":
            return self.layers[0].module
        return nn.Sequential(OrderedDict((layer.name, layer.module) for layer in self.layers))

    def named_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of all layers under their names in the un-split model."""
        return {name: tensor for layer in self.layers for _, name, tensor in _contents(layer)}

    def held_values(self) -> dict[str, Tensor]:
        """Those of them that have values."""
        return {n: tensor for n, tensor in self.named_tensors().items() if not tensor.is_meta}

    def state_dict(self) -> dict[str, Tensor]:
        """The same without buffers that are not part of a state dict."""
        return {
            qualified(layer.path, name): tensor
            for layer in self.layers
            for name, tensor in layer.module.state_dict().items()
        }

    def with_first_values(self, layer: Layer, seed: int) -> nn.Module:
        """A copy of one of the layers on the CPU, with the values that it starts from.

        Those are what it holds, or first values of the seed where it is without any.
        """
        module = copy.deepcopy(layer.module)
        if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
            initialise(with_memory(module, torch.device("cpu")), layer.path, seed)
        return module

    @classmethod
    def from_modules(cls, modules: nn.Module | Sequence[nn.Module]) -> Self:
        """A user's own model: each module (each child of an ``nn.Sequential``) is a layer.

        Layers are called as ``nn.Sequential`` calls them: by their own name, or "0", "1", ...

        Raises:
            ModelError: It is a module that is not a plain row of others, or the layers cannot
                make a network.
        """
        return cls(tuple(Layer(name, module) for name, module in _named(modules)))


def _children(model: nn.Module) -> dict[str, nn.Module]:
    """Children of a plain ``nn.Sequential`` by name."""
    if not isinstance(model, nn.Sequential) or type(model).forward is not nn.Sequential.forward:
        raise ModelError(
            f"cannot cut a {type(model).__name__}: what its forward does between its layers is "
            "unknown. Give an nn.Sequential or a list of modules, in forward order."
        )
    # Not named_children(): it skips a module that stands in the row a second time.
    return dict(zip(model._modules, model, strict=True))


def _check_counts(network: Network) -> None:
    num_layers = len(network.layers)
    if min(network.num_stem, network.num_head) < 0:
        raise ModelError(
            "num_stem and num_head cannot be negative, "
            f"found {network.num_stem} and {network.num_head}."
        )
    if network.num_stem + network.num_head > num_layers:
        raise ModelError(
            f"num_stem = {network.num_stem} and num_head = {network.num_head} "
            f"do not fit into {num_layers} layers."
        )


def _named(modules: object) -> list[tuple[str, nn.Module]]:
    """The modules of a user's row and what they are called."""
    if isinstance(modules, nn.Module):
        return list(_children(modules).items())
    if not isinstance(modules, Sequence) or isinstance(modules, str):
        raise ModelError(
            f"model is {modules!r:.80}: give an nn.Sequential or a list of modules, in forward "
            f"order; a function that makes them is called before, and a model of the shelf is "
            f"named as model.name in the recipe."
        )
    return [(str(index), module) for index, module in enumerate(modules)]


def _check_names(layers: Sequence[Layer]) -> None:
    seen: set[str] = set()
    container = nn.Sequential()
    for layer in layers:
        _check_module(layer.name, layer.module)
        if layer.name == "" and len(layers) > 1:
            raise ModelError(f"{layer} needs a name: only a network of one layer may do without.")
        if "." in layer.name or (layer.name and hasattr(container, layer.name)):
            raise ModelError(f"{layer}: a name has no dot and is no attribute of nn.Sequential.")
        # Parts of a model that was cut have paths of its own, so what they hold counts as well.
        for name in (layer.name, *(name for _, name, _ in _contents(layer))):
            if name.partition(".")[0] in _KEPT_NAMES:
                raise ModelError(
                    f"{layer}: the name {name!r} is kept for what methods add; take another."
                )
        if layer.name in seen:
            raise ModelError(f"two layers are called {layer.name!r}: give each a name of its own.")
        seen.add(layer.name)


def _check_module(name: str, module: object) -> None:
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"layer {name!r} must be an nn.Module, found {type(module).__name__}; "
            "a plain function needs a module around it."
        )


def _check_state(layers: Sequence[Layer]) -> None:
    """Refuse modules with more in their state dict than dense tensors: no checkpoint would hold it.

    What is lazy has no shape before the model has read something.
    """
    for layer in layers:
        for kind, name, tensor in _contents(layer):
            if is_lazy(tensor):
                raise ModelError(
                    f"{kind} {name!r} has no shape yet: let the model read a batch before, as by "
                    f"model(inputs), or build it without lazy modules."
                )
            if tensor.layout != torch.strided:
                raise ModelError(f"{kind} {name!r} is sparse: give a dense one, as by to_dense().")
        for name, module in layer.module.named_modules(prefix=layer.path):
            if type(module).get_extra_state is not nn.Module.get_extra_state:
                raise ModelError(
                    f"{name!r} ({type(module).__name__}) keeps a state beside its parameters and "
                    f"buffers (get_extra_state), which no checkpoint would hold: make buffers of "
                    f"it, or take the method out where it changes nothing."
                )


def _check_nothing_shared(layers: Sequence[Layer]) -> None:
    """Refuse what two layers share: cut apart, each would train and save a copy of its own."""
    owners: dict[int, tuple[Layer, str]] = {}
    for layer in layers:
        for kind, name, thing in _contents(layer):
            owner, first_name = owners.setdefault(id(thing), (layer, name))
            if owner is not layer:
                raise ModelError(
                    f"{first_name!r} and {name!r} are the same {kind}, which would be cut apart. "
                    "Give each layer its own, or make one layer of both and what lies between."
                )


def _contents(layer: Layer) -> Iterator[tuple[str, str, Tensor]]:
    """Kind, qualified name and identity of a layer's state.

    A module without state, such as a ReLU, may stand in the row as often as it likes.
    """
    module = layer.module
    yield from (("parameter", name, it) for name, it in module.named_parameters(prefix=layer.path))
    yield from (("buffer", name, it) for name, it in module.named_buffers(prefix=layer.path))
