"""Shelf of rivals: end-to-end training of the same model on the same batches, and what it costs.

Plain backpropagation, ``DistributedDataParallel`` and the schedules of
``torch.distributed.pipelining``, in real processes over gloo or, on GPUs, NCCL, set up as torch's
documentation recommends. Each makes the update of plain backpropagation; they differ in time,
memory and traffic.

::

    work = RecipeWork(recipe)                              # or EmulatedWork: devices that sleep
    result = run_baseline("1f1b", work, num_ranks=4, num_microbatches=8, num_batches=50, warm_up=5)
    print(result.median_s, max(result.peak_memory_bytes), accuracy_of(recipe, result.weights))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ppll.baselines.systems import SYSTEMS, Layout, System, system_named

if TYPE_CHECKING:
    from ppll.baselines.emulated import EmulatedWork
    from ppll.baselines.run import BaselineResult, run_baseline
    from ppll.baselines.training import RecipeWork, accuracy_of
    from ppll.baselines.work import Workload

__all__ = [
    "SYSTEMS",
    "BaselineResult",
    "EmulatedWork",
    "Layout",
    "RecipeWork",
    "System",
    "Workload",
    "accuracy_of",
    "run_baseline",
    "system_named",
]

_HOMES = {
    "BaselineResult": "run",
    "EmulatedWork": "emulated",
    "RecipeWork": "training",
    "Workload": "work",
    "accuracy_of": "training",
    "run_baseline": "run",
}


def __getattr__(name: str) -> Any:
    """Import on first use: who asks for the names of the rivals needs no torch."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
