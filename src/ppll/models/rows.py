"""Where the row of layers of a model is, told by how its modules are nested.

Libraries keep the layers of a network in plain containers: a ``ModuleList``, or an
``nn.Sequential`` that only calls its children. The layers are the children of the containers that
hold the class of module which stands most often in such a place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ppll.errors import ModelError
from ppll.models.names import qualified

__all__ = ["Row", "cannot_cut", "find_row"]


@dataclass(frozen=True)
class Row:
    """The layers of a model, and what they stand in.

    Attributes:
        layers: Names of the layers' modules in the model, in the order in which they are kept.
        containers: Names of the modules that hold them.
        opened: Names of all modules around a layer, but for the model itself.
    """

    layers: tuple[str, ...]
    containers: tuple[str, ...]
    opened: frozenset[str]


def find_row(model: nn.Module) -> Row:
    """The row of layers of a model.

    Raises:
        ModelError: There is none.
    """
    held = list(_held(model, ""))
    counts = Counter(type(model.get_submodule(layer)) for _, layer in held)
    main_class, num = counts.most_common(1)[0] if counts else (nn.Module, 0)
    if num < 2:
        raise cannot_cut(model, "it keeps no row of layers in an nn.Sequential or a ModuleList")
    is_main = {box for box, layer in held if type(model.get_submodule(layer)) is main_class}
    containers = tuple(dict.fromkeys(box for box, _ in held if box in is_main))
    layers = tuple(layer for box, layer in held if box in is_main)
    return Row(layers, containers, frozenset(p for box in containers for p in _around(box)))


def cannot_cut(model: nn.Module, why: str) -> ModelError:
    """The refusal of a model, with what to do instead."""
    return ModelError(
        f"cannot cut a {type(model).__name__}: {why}. Give an nn.Sequential or a list of modules, "
        f"in forward order, each of which reads what the one before it returns."
    )


def _held(module: nn.Module, name: str) -> Iterator[tuple[str, str]]:
    """Container and name of whatever a plain container holds, without looking into that."""
    for key, child in module.named_children():
        path = qualified(name, key)
        if _is_container(child) or not _is_container(module):
            yield from _held(child, path)
        else:
            yield name, path


def _is_container(module: nn.Module) -> bool:
    is_sequence = isinstance(module, nn.Sequential)
    return isinstance(module, nn.ModuleList) or (
        is_sequence and type(module).forward is nn.Sequential.forward
    )


def _around(path: str) -> Iterator[str]:
    """A module's name and those of the modules around it."""
    parts = path.split(".")
    return (".".join(parts[: end + 1]) for end in range(len(parts)))
