"""Recipes of the GPU benchmarks: four networks on CIFAR-10's shapes, random data."""

from __future__ import annotations

from typing import Any, Final

from ppll.config import Recipe

NETWORKS: Final[dict[str, dict[str, Any]]] = {
    "resnet32": {"name": "resnet32"},
    "resnet110": {"name": "resnet110"},
    "vit-tiny": {"name": "vit-tiny", "patch_size": 4},
    "vit-small": {"name": "vit-small", "patch_size": 4},
}
TINY: Final[dict[str, dict[str, Any]]] = {
    "resnet32": {"name": "resnet", "depth": 14, "width": 8},
    "vit-tiny": {"name": "vit", "width": 16, "depth": 4, "heads": 2, "patch_size": 8},
}
"""Stand-ins with which the scripts themselves are tried on a processor."""

OPTIMIZERS: Final[dict[str, dict[str, Any]]] = {
    "resnet": {"name": "sgd", "lr": 0.1, "weight_decay": 1e-4},
    "vit": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
}


def make_recipe(
    network: str, batch_size: int, method: str, device: str, *, tiny: bool, **train: Any
) -> Recipe:
    """Four blocks (one for backprop) of a network in bf16, on a few batches of random images."""
    kind = "vit" if network.startswith("vit") else "resnet"
    data = {"name": "synthetic", "num_train": batch_size * 8, "num_test": batch_size}
    return Recipe.from_dict(
        {
            "data": {**data, "batch_size": batch_size},
            "model": (TINY if tiny else NETWORKS)[network],
            "split": {"blocks": 4},
            "method": {"name": method},
            "optimizer": OPTIMIZERS[kind],
            "train": {"precision": "bf16", "channels_last": kind == "resnet", **train},
            "runtime": {"devices": device, "stall_timeout_s": 300.0},
        }
    )
