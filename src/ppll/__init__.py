"""PPLL trains deep networks across devices without a backward pass between them.

A network is cut into blocks; each has an auxiliary network, a local loss and an optimizer of its
own, and runs on its own device. Features flow forward through bounded channels, so all blocks
compute forward and backward at the same time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppll.callbacks import Callback
    from ppll.config import Recipe
    from ppll.data import Dataset
    from ppll.models.splitting import split
    from ppll.recipe_files import load_recipe
    from ppll.result import Result
    from ppll.trained.evaluation import evaluate, evaluate_exits
    from ppll.trained.exits import ExitReport, measure_exits
    from ppll.trained.exporting import export
    from ppll.trained.inference import TrainedNetwork, load
    from ppll.trainer import Trainer

    __version__: str

__all__ = [
    "Callback",
    "Dataset",
    "ExitReport",
    "Recipe",
    "Result",
    "TrainedNetwork",
    "Trainer",
    "evaluate",
    "evaluate_exits",
    "export",
    "load",
    "load_recipe",
    "measure_exits",
    "split",
]

_HOMES = {
    "Callback": "ppll.callbacks",
    "Dataset": "ppll.data",
    "ExitReport": "ppll.trained.exits",
    "Recipe": "ppll.config",
    "Result": "ppll.result",
    "TrainedNetwork": "ppll.trained.inference",
    "Trainer": "ppll.trainer",
    "evaluate": "ppll.trained.evaluation",
    "evaluate_exits": "ppll.trained.evaluation",
    "export": "ppll.trained.exporting",
    "load": "ppll.trained.inference",
    "load_recipe": "ppll.recipe_files",
    "measure_exits": "ppll.trained.exits",
    "split": "ppll.models.splitting",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes a second that ``ppll --help`` need not wait for."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        return import_module("importlib.metadata").version("ppll")
    raise AttributeError(f"module 'ppll' has no attribute {name!r}")
