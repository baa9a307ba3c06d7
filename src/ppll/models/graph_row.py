"""A model whose forward can be traced, as a row of layers: a stem, the layers it keeps, a head.

The forward is written down as a graph (``torch.fx``) in which every module counts as one step, but
for the model itself and what stands around the layers of its row. What comes before the first layer
is the stem, what follows the last is the head; a layer takes the steps behind it along. Every part
keeps the names that its parameters have in the model.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from torch import fx, nn

from ppll.errors import ModelError
from ppll.models.network import Layer, Network
from ppll.models.rows import Row, cannot_cut, find_row

__all__ = ["graph_row"]

_STATE: Final = "get_attr"


def graph_row(model: nn.Module) -> Network:
    """Cut a model at its row of layers.

    Args:
        model: What is cut; the layers are its own modules, not copies of them.

    Raises:
        ModelError: It keeps no row of layers, its forward cannot be traced, or a tensor crosses
            more than one cut.
    """
    row = find_row(model)
    graph = _traced(model, row)
    parts = _parts(model, graph, row)
    for index in range(1, len(parts)):
        _check_crossing(model, parts, index)
    names = ["stem", *(str(part[0].target).replace(".", "_") for part in parts[1:-1]), "head"]
    layers = [_layer(model, name, parts, i) for i, name in enumerate(names)]
    return Network(tuple(layers), num_stem=1, num_head=1, original=model)


class _Tracer(fx.Tracer):
    """Follows the forwards of the modules around the layers, and of no others."""

    def __init__(self, opened: frozenset[str]) -> None:
        super().__init__()
        self._opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one step."""
        del m
        return module_qualified_name not in self._opened

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """The forward and what it is traced with: its input, and defaults where it has some.

        A forward may ask for them in Python, as in ``if targets is None``.
        """
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        model, first, *others = args
        return function, [model, first, *map(_default_or_same, others)]


def _default_or_same(argument: Any) -> Any:
    """The default value of an argument that has one."""
    node = getattr(argument, "node", None)
    return node.args[0] if isinstance(node, fx.Node) and node.args else argument


def _traced(model: nn.Module, row: Row) -> fx.Graph:
    """The forward's steps, which must be the same in training and in evaluation."""
    graphs = []
    for training in (False, True):
        for name in ("", *row.opened):
            model.get_submodule(name).training = training
        graphs.append(_trace(model, row))
    if str(graphs[0]) != str(graphs[1]):
        raise cannot_cut(
            model,
            "its own forward, outside of its layers, computes something else in training than in "
            "evaluation, such as a dropout (a drop_rate of 0 does without)",
        )
    return graphs[0]


def _trace(model: nn.Module, row: Row) -> fx.Graph:
    try:
        graph = _Tracer(row.opened).trace(model)
    except Exception as error:
        raise cannot_cut(
            model, f"its forward cannot be traced ({type(error).__name__}: {error!s:.200})"
        ) from error
    for node in graph.nodes:
        node.type = None  # Annotations may be text, which torch cannot hand to another process.
    _check_arguments(model, graph)
    traced = fx.GraphModule(model, graph)
    traced.graph.eliminate_dead_code()
    return traced.graph


def _check_arguments(model: nn.Module, graph: fx.Graph) -> None:
    """Refuse a forward that reads more than one input, and take the others out."""
    _, *others = [node for node in graph.nodes if node.op == "placeholder"]
    for node in others:
        if node.users:
            raise cannot_cut(model, f"its forward needs the argument {node.target!r}, too")
        graph.erase_node(node)


def _parts(model: nn.Module, graph: fx.Graph, row: Row) -> list[list[fx.Node]]:
    """The steps of the stem, of every layer in the order of calls, and of the head."""
    parts: list[list[fx.Node]] = [[]]
    calls = [n for n in graph.nodes if n.op == "call_module" and n.target in row.layers]
    _check_called_once(model, calls)
    for node in graph.nodes:
        if node in calls:
            parts.append([])
        if node.op != "output":
            parts[-1].append(node)
    last = parts.pop()
    return [*parts, last[:1], [*last[1:], _output(model, graph)]]


def _check_called_once(model: nn.Module, calls: Sequence[fx.Node]) -> None:
    seen: set[Any] = set()
    for node in calls:
        if node.target in seen:
            raise cannot_cut(model, f"its forward calls {node.target!r} more than once")
        seen.add(node.target)
    if len(seen) < 2:
        raise cannot_cut(model, "its forward calls no row of layers one after the other")


def _output(model: nn.Module, graph: fx.Graph) -> fx.Node:
    node: fx.Node = next(n for n in graph.nodes if n.op == "output")
    if not isinstance(node.args[0], fx.Node):
        found = type(node.args[0]).__name__
        raise cannot_cut(model, f"its forward returns a {found}, not one tensor of logits")
    return node


def _check_crossing(model: nn.Module, parts: list[list[fx.Node]], index: int) -> None:
    """Refuse a cut before a part that a value crosses on its way further on.

    What the part before makes and this one alone reads may be more than one value. A skip
    connection is refused: what begins it would learn nothing from where it ends.
    """
    crossing = _crossing(parts, index)
    where = _named(parts, index)
    if not crossing:
        raise cannot_cut(model, f"{where} does not read what stands before it")
    around = {*parts[index - 1], *parts[index]}
    skips = [node for node in crossing if not around.issuperset([node, *node.users])]
    if len(crossing) == 1 or not skips:
        return
    what = "; ".join(_way_of(model, parts, node) for node in skips)
    first, last = (str(parts[i][0].target) for i in (1, len(parts) - 2))
    raise ModelError(
        f"cannot cut a {type(model).__name__} before {where}. Taken as layers were {first!r} to "
        f"{last!r} ({len(parts) - 2}), but {what}. Only what goes from one layer to the next may "
        f"cross a cut. Give a list of modules in which a skip connection begins and ends in the "
        f"same module; what all layers read, such as a mask, each of them may hand on in a tuple."
    )


def _named(parts: list[list[fx.Node]], index: int) -> str:
    """What a part is called, for people."""
    if index in (0, len(parts) - 1):
        return "the head" if index else "the stem"
    return f"layer {str(parts[index][0].target)!r}"


def _way_of(model: nn.Module, parts: list[list[fx.Node]], node: fx.Node) -> str:
    """Where a value is made, and where it is read last."""
    made = next(i for i, part in enumerate(parts) if node in part)
    read = max(i for i, part in enumerate(parts) if any(user in part for user in node.users))
    return (
        f"{node.name!r} ({_made_by(model, node)}) of {_named(parts, made)} is read again in "
        f"{_named(parts, read)}"
    )


def _crossing(parts: list[list[fx.Node]], index: int) -> list[fx.Node]:
    """Values that are computed before a part and used in it or behind it, in order."""
    behind = {node for part in parts[index:] for node in part}
    before = (node for part in parts[:index] for node in part)
    return [n for n in before if n.op != _STATE and any(user in behind for user in n.users)]


def _made_by(model: nn.Module, node: fx.Node) -> str:
    if node.op == "placeholder":
        return "the model's input"
    if node.op == "call_module":
        return type(model.get_submodule(str(node.target))).__name__
    return str(getattr(node.target, "__name__", node.target))


def _layer(model: nn.Module, name: str, parts: list[list[fx.Node]], index: int) -> Layer:
    part = parts[index]
    call = part[0]
    if name not in ("stem", "head") and len(part) == 1 and _is_plain(model, call):
        return Layer(name, model.get_submodule(str(call.target)), str(call.target))
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    if index > 0:
        copies |= _received(graph, _crossing(parts, index))
    for node in _with_state(part):
        copies[node] = graph.node_copy(node, lambda n: copies[n])
    if part[-1].op != "output":
        sent = [copies[node] for node in _crossing(parts, index + 1)]
        graph.output(sent[0] if len(sent) == 1 else tuple(sent))
    return Layer(name, fx.GraphModule(model, graph), "")


def _received(graph: fx.Graph, crossing: Sequence[fx.Node]) -> dict[fx.Node, fx.Node]:
    """What stands in a part's graph for the values that cross the cut before it."""
    features = graph.placeholder("features")
    if len(crossing) == 1:
        return {crossing[0]: features}
    return {
        node: graph.call_function(operator.getitem, (features, index))
        for index, node in enumerate(crossing)
    }


def _is_plain(model: nn.Module, call: fx.Node) -> bool:
    """Whether a layer is called with its input alone, or with what it takes by default."""
    parameters = inspect.signature(model.get_submodule(str(call.target)).forward).parameters
    return len(call.args) == 1 and all(
        name in parameters and parameters[name].default is value
        for name, value in call.kwargs.items()
    )


def _with_state(part: list[fx.Node]) -> Iterator[fx.Node]:
    """The steps of a part, and before them the parameters that it reads from elsewhere."""
    own = set(part)
    for node in part:
        for read in node.all_input_nodes:
            if read.op == _STATE and read not in own:
                own.add(read)
                yield read
        yield node
