"""The zoo of local learning: one file a method, one contract for all."""

from __future__ import annotations

from typing import Any, cast

from ppll.methods.backprop import Backprop
from ppll.methods.base import BlockSite, Lesson, LocalLoss, Method, Paper, TaskLoss
from ppll.methods.dgl import DGL
from ppll.methods.greedy import Greedy
from ppll.methods.heads import HeadMethod
from ppll.methods.man import MAN, MANPlusPlus
from ppll.methods.zerolock import ZeroLock
from ppll.registry import Registry

__all__ = [
    "BlockSite",
    "HeadMethod",
    "Lesson",
    "LocalLoss",
    "Method",
    "Paper",
    "TaskLoss",
    "describe_methods",
    "methods",
]

methods: Registry[Method] = Registry("method", "method")
methods.register("backprop", "end-to-end backpropagation, the control: one block")(Backprop)
methods.register("greedy", "a pooled linear classifier behind every block")(Greedy)
methods.register("dgl", "a small pooled network (MLP-SR) behind every block")(DGL)
methods.register("man", "a layer like the next block's first, learned and followed")(MAN)
methods.register("manpp", "man with a learned scale between the two")(MANPlusPlus)
methods.register("zerolock", "a head, drawn towards the prediction of the block before")(ZeroLock)


def describe_methods() -> list[dict[str, Any]]:
    """A row a method: its name, paper, what travels for it, and its options."""
    rows = []
    for entry in methods:
        method = cast("type[Method]", entry.build)
        rows.append(
            {
                "name": entry.name,
                "summary": entry.summary,
                "paper": f"{method.paper.title} ({method.paper.source})",
                "year": method.paper.year,
                "travels": [
                    *("features", "targets", *method.fields),
                    *(f"{name} (second part)" for name in method.late_fields),
                    *(["next block's first layer (side channel)"] if method.slow_from else []),
                ],
                "options": sorted(entry.options),
            }
        )
    return rows
