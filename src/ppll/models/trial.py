"""What the layers of a network hand on, found by running them on a small batch."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from ppll.errors import ModelError
from ppll.models.empty import with_memory
from ppll.models.network import Layer, Network
from ppll.models.structures import MAX_BESIDE, Structure, problem_of, tensors_of
from ppll.numerics import own_generator

__all__ = ["check_vocabulary", "feature_shapes", "output_of", "tried"]

_NUM_SAMPLES: Final = 2
"""Samples of a trial run: with one, a layer that mixes up its dimensions could go unnoticed."""


def feature_shapes(
    network: Network, input_shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> list[tuple[int, ...]]:
    """Shape of every layer's output for one sample, as ``tried`` finds it."""
    return tried(network, input_shape, dtype)[1]


def tried(
    network: Network, input_shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> tuple[Network, list[tuple[int, ...]]]:
    """Run every layer once, in evaluation mode, and see what it hands on.

    Copies of the layers are run, one at a time and on the CPU, so nothing of the network changes
    and one whose parameters are on the meta device will do.

    Args:
        network: What is run.
        input_shape: Shape of one sample, without N.
        dtype: Of the input, int64 for tokens; zeros of it are run, which are valid tokens, too.

    Returns:
        The network, whose layers know how their input and output are put together, and one shape a
        layer, without N: of its output, or of the main tensor in it.

    Raises:
        ModelError: A layer fails, or returns something that cannot cross a cut.
    """
    layers, shapes = [], []
    reads: Structure | None = None
    with torch.no_grad(), own_generator():
        features: Any = torch.zeros((_NUM_SAMPLES, *input_shape), dtype=dtype)
        for layer in network.layers:
            features = output_of(_trial_copy(layer), features)
            makes = Structure.of(features)
            layers.append(dataclasses.replace(layer, reads=reads, makes=makes))
            shapes.append(tuple(_main(features, makes).shape[1:]))
            reads = makes
    return dataclasses.replace(network, layers=tuple(layers)), shapes


def check_vocabulary(network: Network, length: int, num_tokens: int) -> None:
    """Let the first layer read the largest token, as ``tried`` lets all of them read zeros.

    Raises:
        ModelError: It fails.
    """
    layer = network.layers[0]
    tokens = torch.full((_NUM_SAMPLES, length), num_tokens - 1)
    with torch.no_grad(), own_generator():
        try:
            _trial_copy(layer).module(tokens)
        except Exception as error:
            raise ModelError(
                f"{layer} reads token 0 but not {num_tokens - 1}, the largest of the data's "
                f"{num_tokens} ({type(error).__name__}: {error}): give its embedding as many rows."
            ) from error


def _main(output: Any, structure: Structure | None) -> Tensor:
    tensor: Tensor = output if structure is None else tensors_of(output)[structure.main]
    return tensor


def _trial_copy(layer: Layer) -> Layer:
    try:
        module = copy.deepcopy(layer.module)
    except Exception as error:
        raise ModelError(
            f"{layer} cannot be copied, as every process must ({type(error).__name__}: "
            f"{error!s:.200}): let it hold no locks, files or computed tensors; "
            f"torch.nn.utils.parametrizations has a weight_norm that computes none."
        ) from error
    tensors = itertools.chain(module.parameters(), module.buffers())
    if any(t.is_meta for t in tensors):
        with_memory(module, torch.device("cpu"))
    return Layer(layer.name, module.cpu().eval())


def output_of(layer: Layer, inputs: Any) -> Any:
    """What a layer makes of a batch.

    Raises:
        ModelError: It fails, or returns something that cannot cross a cut.
    """
    tensors = tensors_of(inputs)
    try:
        output = layer.module(inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(tensor.shape[1:])) for tensor in tensors)
        raise ModelError(
            f"{layer} cannot read samples of shape {shapes}: {type(error).__name__}: {error}"
            f"{_hint_of_types(layer, tensors)}"
        ) from error
    if problem := problem_of(output, tensors[0].shape[0]):
        raise ModelError(
            f"{layer} returns {problem}, but what can be cut behind must return one floating "
            f"tensor whose first dimension is the batch, or a tuple, list or dict of up to "
            f"{MAX_BESIDE + 1} such tensors, of which one is floating. Wrap it in a module that "
            f"does, or make one layer of it and those after it."
        )
    return output


def _hint_of_types(layer: Layer, tensors: Sequence[Tensor]) -> str:
    if not any(tensor.is_floating_point() for tensor in tensors):
        return ". Whole numbers (N, T) are tokens: give floating point where they are quantities."
    if any(isinstance(module, nn.Embedding) for module in layer.module.modules()):
        return ". It has an embedding: where they are tokens, give whole numbers (N, T)."
    return ""
