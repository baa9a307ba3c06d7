"""What the methods of local learning are and ask for, as rows to print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from ppll.auxiliary_share import Share, auxiliary_share
from ppll.blocks.blueprint import Blueprint
from ppll.data_facts import DataFacts
from ppll.errors import ModelError
from ppll.job import draw_blueprint
from ppll.methods import Method, methods
from ppll.recipe_files import load_recipe
from ppll.sections import MethodConfig

__all__ = ["as_table", "describe_methods", "travels"]

_NETWORKS: Final = {"cifar10-resnet32-dgl": "ResNet-32", "cifar10-vit-dgl": "ViT-tiny"}
"""What the shares of auxiliary networks are of: network and cuts of shipped recipes."""
_PUBLISHED: Final = {"next": "next block's first layer", "last": "network's last layer"}
_CIFAR10: Final = DataFacts((3, 32, 32), 10, 1)


def describe_methods() -> list[dict[str, Any]]:
    """A row a method, with its default options.

    Its name, summary, paper, source, year and options; what ``travels``; and by the network's name
    ``auxiliary_compute`` and ``auxiliary_parameters``, the ``Share`` of what it adds to ResNet-32
    and ViT-tiny in four blocks on images like CIFAR-10's. None stands for a network that the method
    cannot work on.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # For a single sample, more would only wait for each other.
    try:
        blueprints = [draw_blueprint(load_recipe(name), _CIFAR10, None) for name in _NETWORKS]
        return [_row(entry.name, blueprints) for entry in methods]
    finally:
        torch.set_num_threads(num_threads)


def _row(name: str, blueprints: list[Blueprint]) -> dict[str, Any]:
    entry, method = methods[name], methods.build(name, {})
    shares = {b.recipe.model.name: _share(name, b) for b in blueprints}
    return {
        "name": name,
        "summary": entry.summary,
        "paper": f"{method.paper.title} ({method.paper.source})",
        "source": method.paper.source,
        "year": method.paper.year,
        "travels": travels(method),
        "auxiliary_compute": {model: s and s.compute for model, s in shares.items()},
        "auxiliary_parameters": {model: s and s.parameters for model, s in shares.items()},
        "options": sorted(entry.options),
    }


def _share(name: str, of_network: Blueprint) -> Share | None:
    """What a method adds to the network of a blueprint; none where it cannot work on it."""
    recipe = of_network.recipe.model_copy(update={"method": MethodConfig(name=name)})
    try:
        return auxiliary_share(
            draw_blueprint(recipe, _CIFAR10, of_network.network, of_network.shapes)
        )
    except ModelError:
        return None


def as_table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What of ``describe_methods`` fits beside each other on 80 columns.

    Features and targets always travel.
    """
    of_networks = "(%)\n" + " /\n".join(_NETWORKS.values())
    return [
        {
            "name": row["name"],
            "source": row["source"],
            "year": row["year"],
            "also travels": row["travels"][2:] or "-",
            f"auxiliary\ncompute {of_networks}": _percentages(row["auxiliary_compute"]),
            f"auxiliary\nparameters {of_networks}": _percentages(row["auxiliary_parameters"]),
        }
        for row in rows
    ]


def _percentages(shares: Mapping[str, float | None]) -> str:
    return " / ".join("-" if x is None else _percentage(x) for x in shares.values())


def _percentage(share: float) -> str:
    if 0 < share < 0.0005:
        return "<0.1"
    return f"{100 * share:.1f}" if 0 < share < 0.1 else f"{100 * share:.0f}"


def travels(method: Method) -> list[str]:
    """What goes from a block to a neighbour, in words."""
    return [
        *("features", "targets", *method.fields),
        *(["input of the block before"] if method.carries_input else []),
        *(f"{name} (second part)" for name in method.late_fields),
        *([f"{_PUBLISHED[method.slow_from]} (side channel)"] if method.slow_from else []),
    ]
