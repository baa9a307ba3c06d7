"""A causal language model of Hugging Face's kind, as a row of layers.

Its forward hands every layer more than the features: positions, rotary embeddings, masks. The model
runs once while its calls are written down. What a layer is given beside the features must be a
constant, or a function of the number of tokens, which the layer then computes for itself inside the
cut. The stem is the model's body with no layers and no last norm in it; the head is what is called
behind the last layer. Encoders that classify a row, such as BERT, are cut so, too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from ppll.errors import ModelError
from ppll.models.network import Layer, Network
from ppll.models.rows import Row, cannot_cut, find_row

__all__ = ["causal_row", "is_causal_lm"]

_POSITIONS: Final = ("position_ids", "cache_position")
_ROTARY: Final = "position_embeddings"


def is_causal_lm(model: nn.Module) -> bool:
    """Whether a model has what Hugging Face's causal language models have."""
    names = ("config", "get_input_embeddings", "get_output_embeddings")
    return all(hasattr(model, name) for name in names)


def causal_row(model: nn.Module, tokens: Tensor) -> Network:
    """Cut a language model at its row of layers.

    Args:
        model: In evaluation mode; the layers are its own modules, not copies of them.
        tokens: A sample of its input: (N, T), int64.

    Raises:
        ModelError: It keeps no row of layers, or a layer is given what cannot be computed in it.
    """
    row = find_row(model)
    if len(row.containers) != 1 or "." not in row.containers[0]:
        raise cannot_cut(model, "its layers do not stand in one ModuleList of its body")
    calls = _calls(model, row, tokens)
    places = [i for i, call in enumerate(calls) if call.name in row.layers]
    if [calls[i].name for i in places] != list(row.layers):
        raise cannot_cut(model, "its forward does not call its layers once each, in their order")
    before, behind = calls[: places[0]], calls[places[-1] + 1 :]
    _check_behind(model, behind)
    body = _body(model, row, before)
    layers = [
        Layer("stem", _Stem(model, body, row, behind), ""),
        *(_layer(model, calls[place], index, before) for index, place in enumerate(places)),
        Layer("head", _Head(model, [call.name for call in behind]), ""),
    ]
    return Network(tuple(layers), num_stem=1, num_head=1, original=model)


@dataclass(frozen=True)
class _Call:
    """One call of a module, as the model's forward made it."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any


def _calls(model: nn.Module, row: Row, tokens: Tensor) -> list[_Call]:
    """All calls of modules, but for those inside of others that are no containers of layers."""
    calls: list[_Call] = []
    with _recorded(model, row, calls):
        model(tokens, use_cache=False)
    return calls


@contextmanager
def _recorded(model: nn.Module, row: Row, calls: list[_Call]) -> Iterator[None]:
    inside: list[str] = []
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def enter(_: nn.Module, __: object) -> None:
            inside.append(name)

        def leave(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            inside.pop()
            if not inside:
                calls.append(_Call(name, args, kwargs, output))

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))

    for name, module in model.named_modules():
        if name and name not in row.opened:
            watch(name, module)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _body(model: nn.Module, row: Row, before: Sequence[_Call]) -> str:
    """The innermost module around the layers that holds all that is called before them, too."""
    body = row.containers[0].rpartition(".")[0]
    while not all(call.name.startswith(f"{body}.") for call in before):
        body = body.rpartition(".")[0]
        if not body:
            raise cannot_cut(model, "its own forward calls modules before its body")
    return body


def _check_behind(model: nn.Module, behind: Sequence[_Call]) -> None:
    for call in behind:
        if not (len(call.args) == 1 and not call.kwargs and isinstance(call.output, Tensor)):
            raise cannot_cut(model, f"{call.name!r}, behind the last layer, is no plain layer")


def _layer(model: nn.Module, call: _Call, index: int, before: Sequence[_Call]) -> Layer:
    """One layer, which makes for itself what the model's forward hands to it."""
    features, *others = call.args if call.args else (call.kwargs.get("hidden_states"),)
    if not isinstance(features, Tensor):
        raise cannot_cut(model, f"{call.name!r} reads no tensor of features first")
    kwargs = {k: v for k, v in call.kwargs.items() if v is not features}
    positions = [k for k, v in kwargs.items() if k in _POSITIONS and _counts(v, features.shape[1])]
    rotary = _maker(kwargs.get(_ROTARY), before)
    made = {*positions, *([_ROTARY] if rotary else [])}
    constants = {name: value for name, value in kwargs.items() if name not in made}
    _check_constants(model, call.name, {**dict(enumerate(others)), **constants})
    module = _CausalLayer(model, call.name, others, constants, positions)
    if rotary is not None:
        # Each layer has a copy of its own, so that cuts share nothing.
        name = f"rotary_{index}"
        module.add_module(name, copy.deepcopy(model.get_submodule(rotary.name)))
        module.rotary = name
    return Layer(call.name.replace(".", "_"), module, "")


def _counts(value: object, length: int) -> bool:
    """Whether a value counts the tokens from 0."""
    if not isinstance(value, Tensor) or value.is_floating_point() or value.shape[-1] != length:
        return False
    return bool((value == torch.arange(length, device=value.device)).all())


def _maker(embeddings: Any, before: Sequence[_Call]) -> _Call | None:
    """The call before the layers that made rotary embeddings from features and positions."""
    if embeddings is None:
        return None
    return next((call for call in before if call.output is embeddings), None)


def _check_constants(model: nn.Module, name: str, values: Mapping[Any, Any]) -> None:
    for key, value in values.items():
        if value is not None and not isinstance(value, bool | int | float | str):
            raise ModelError(
                f"cannot cut a {type(model).__name__}: beside its features, {name!r} is given "
                f"{key!r}, a {type(value).__name__}, which would cross every cut, but only one "
                f"tensor may. Masks do not arise with attn_implementation='sdpa' and without "
                f"padding; otherwise give a list of modules that make it for themselves."
            )


def _nest(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module where it stands in the model, so that its parameters keep their names."""
    *holders, last = path.split(".")
    for name in holders:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(last, module)


def _with(module: nn.Module, path: str, other: nn.Module) -> nn.Module:
    """Another module of the same modules but for the one at a path."""
    changed = copy.copy(module)
    changed._modules = dict(changed._modules)
    name, _, rest = path.partition(".")
    held = changed.get_submodule(name)
    changed._modules[name] = _with(held, rest, other) if rest else other
    return changed


class _Stem(nn.Module):
    """Tokens (N, T) to what the first layer reads: (N, T, D)."""

    def __init__(self, model: nn.Module, body: str, row: Row, behind: Sequence[_Call]) -> None:
        super().__init__()
        self.body = body
        # The same modules in another body, whose forward finds no layers and no last norm.
        emptied = model.get_submodule(body)
        others = {row.containers[0]: nn.ModuleList(), **{c.name: nn.Identity() for c in behind}}
        for name, other in others.items():
            if name.startswith(f"{body}."):
                emptied = _with(emptied, name.removeprefix(f"{body}."), other)
        _nest(self, body, emptied)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embedded tokens."""
        features: Tensor = self.get_submodule(self.body)(tokens, use_cache=False)[0]
        return features


class _CausalLayer(nn.Module):
    """A layer of the model: (N, T, D) to the same."""

    def __init__(
        self,
        model: nn.Module,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        positions: Sequence[str],
    ) -> None:
        super().__init__()
        self.layer, self.args, self.kwargs = name, tuple(args), dict(kwargs)
        self.positions = tuple(positions)
        self.rotary: str | None = None
        _nest(self, name, model.get_submodule(name))

    def forward(self, features: Tensor) -> Tensor:
        """What the layer makes of the features."""
        positions = torch.arange(features.shape[1], device=features.device).unsqueeze(0)
        made: dict[str, Any] = dict.fromkeys(self.positions, positions)
        if self.rotary is not None:
            made[_ROTARY] = self.get_submodule(self.rotary)(features, position_ids=positions)
        layer = self.get_submodule(self.layer)
        output = layer(features, *self.args, **self.kwargs, **made)
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found


class _Head(nn.Module):
    """Features (N, T, D) to logits (N, ...): the modules behind the last layer."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        for name in names:
            _nest(self, name, model.get_submodule(name))

    def forward(self, features: Tensor) -> Tensor:
        """Logits of the next token, or of the row's class."""
        for name in self.names:
            features = self.get_submodule(name)(features)
        return features
