"""Any model as a row of layers, known by its structure and proved by running it.

Whatever was recognised, the row must compute in evaluation, bit for bit, what the model itself
computes, and hold all that is in the model's state dict; otherwise the model is refused.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ppll.errors import ModelError
from ppll.models.causal_row import causal_row, is_causal_lm
from ppll.models.graph_row import graph_row
from ppll.models.network import Network
from ppll.models.rows import cannot_cut
from ppll.models.structures import tensors_of
from ppll.models.trial import output_of
from ppll.numerics import own_generator

__all__ = ["Model", "plain_row", "sample_of", "split"]

Model = nn.Module | Sequence[nn.Module] | Network
"""What may be given as a model."""

_log = logging.getLogger(__name__)

_NUM_SAMPLES = 2


def sample_of(input_shape: tuple[int, ...], num_tokens: int | None = None) -> Tensor:
    """A small batch of made-up input.

    Args:
        input_shape: Of one sample, without N.
        num_tokens: How many different tokens there are; none for float32 input, of 0 to below 1:
            what reads it as whole numbers finds the first row of a table.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (_NUM_SAMPLES, *input_shape)
    if num_tokens is None:
        return torch.rand(shape, generator=generator, dtype=torch.float32)
    return torch.randint(num_tokens, shape, generator=generator)


def plain_row(model: Model) -> Network | None:
    """A model that is a row of layers already; none where the row is still to be found.

    Raises:
        ModelError: The layers cannot make a network.
    """
    if isinstance(model, Network):
        return _out_of_place(model)
    if isinstance(model, nn.Module) and type(model).forward is not nn.Sequential.forward:
        return None
    return _out_of_place(Network.from_modules(model))


def _out_of_place(network: Network) -> Network:
    """Tell layers that begin with an activation in place to leave their input as it is.

    It may be another block's memory; what they compute stays the same.
    """
    for layer in network.layers:
        module: nn.Module | None = layer.module
        while isinstance(module, nn.Sequential):
            module = next(iter(module), None)
        if getattr(module, "inplace", None) is True:
            module.inplace = False  # type: ignore[union-attr]
    return network


def split(model: Model, sample: Tensor, *, untie: bool = True) -> Network:
    """A model as a row of layers that can be cut between any two.

    A plain ``nn.Sequential`` or a list of modules is a row already. In other models the row is
    found: vision transformers and residual networks of timm and torchvision, causal language models
    of Hugging Face, and what is built like them. The layers are the model's own modules, so it
    holds the trained values after training. Those that begin with an activation in place are told
    to leave their input as it is.

    Args:
        model: On the CPU.
        sample: A small batch of its input: images (N, C, H, W) in float32, tokens (N, T) in int64.
        untie: Whether an output layer that shares its weight with the input embeddings gets a copy
            of its own, in the model, too. Such a model is refused otherwise.

    Raises:
        ModelError: The model cannot be cut; the message names the module and says what to do.
    """
    if (row := plain_row(model)) is not None:
        return row
    assert isinstance(model, nn.Module)
    _check_place(model)
    _untie(model, allowed=untie)
    with _evaluating(model), torch.no_grad(), own_generator():
        expected = _logits(model, sample)
        row = causal_row(model, sample) if is_causal_lm(model) else graph_row(model)
        network = _out_of_place(row)
        _check_whole(model, network)
        _check_same(model, network, sample, expected)
    return network


def _check_place(model: nn.Module) -> None:
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if tensor.device.type != "cpu":
            raise ModelError(
                f"{name!r} of the {type(model).__name__} is on {tensor.device}: give the model on "
                f"the CPU, runtime.devices says where its blocks train."
            )


def _untie(model: nn.Module, *, allowed: bool) -> None:
    """Give an output layer that shares the input embeddings' weight one of its own."""
    named = list(model.named_modules())
    embeddings = {id(m.weight): name for name, m in named if isinstance(m, nn.Embedding)}
    for name, module in named:
        if isinstance(module, nn.Linear) and id(module.weight) in embeddings:
            _untie_one(model, embeddings[id(module.weight)], name, module, allowed=allowed)


def _untie_one(
    model: nn.Module, first: str, second: str, module: nn.Linear, *, allowed: bool
) -> None:
    what = f"{second}.weight of the {type(model).__name__} is tied to {first}.weight"
    if not allowed:
        raise ModelError(
            f"{what}, which a cut would part: set split.untie = true (untie=True) to train a copy "
            f"of its own, or give a model without tied embeddings."
        )
    _log.warning("%s: it is untied, and trains as a copy of its own (split.untie)", what)
    with torch.no_grad():
        module.weight = nn.Parameter(module.weight.clone(), module.weight.requires_grad)
    config: Any = getattr(model, "config", None)
    if hasattr(config, "tie_word_embeddings"):
        config.tie_word_embeddings = False


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and every module as it was afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _logits(model: nn.Module, sample: Tensor) -> Tensor:
    """What the model itself computes."""
    try:
        output = model(sample, use_cache=False) if is_causal_lm(model) else model(sample)
    except Exception as error:
        raise ModelError(
            f"the {type(model).__name__} cannot read a batch of shape {tuple(sample.shape)} "
            f"({sample.dtype}): {type(error).__name__}: {error!s:.200}. {_how_it_reads(model)}"
        ) from error
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        found = type(logits).__name__
        raise cannot_cut(model, f"its forward returns a {found}, not one tensor of logits")
    return logits


def _how_it_reads(model: nn.Module) -> str:
    """What to do about a model that does not read the data."""
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if types - {torch.float32}:
        return "Give it with parameters in float32, by model.float()."
    return "Give it data of the shape that it was built for, or build it for this one."


def _check_whole(model: nn.Module, network: Network) -> None:
    """Refuse a row that leaves out something of the model's state."""
    found = network.state_dict()
    if missing := [name for name in model.state_dict() if name not in found]:
        raise cannot_cut(model, f"its forward does not use {missing[0]!r}, so no layer holds it")


def _check_same(model: nn.Module, network: Network, sample: Tensor, expected: Tensor) -> None:
    """Refuse a row that computes something else than the model."""
    features: Any = sample
    for layer in network.layers:
        before = [(tensor, tensor._version) for tensor in tensors_of(features)]
        features = output_of(layer, features)
        if any(tensor._version != version for tensor, version in before):
            raise ModelError(
                f"{layer} changes its input in place, which may be another block's memory: use the "
                f"module's out-of-place form (such as ReLU(inplace=False))."
            )
    if not torch.equal(features, expected):
        raise cannot_cut(
            model, "its layers, one after the other, compute something else than its own forward"
        )
