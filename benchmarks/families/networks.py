"""One small network of each family, with the recipe that trains it by backprop and locally."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from torch import nn

from ppll.config import Recipe

__all__ = ["FAMILIES", "LOCAL", "SYSTEMS", "Family"]

SYSTEMS: Final = {"backprop": 1, "local": 1, "local, two stages": 2}
"""What is compared, with its number of stages."""
LOCAL: Final = "local"


@dataclass(frozen=True)
class Family:
    """A network and how it is trained.

    Attributes:
        page: Section of ``docs/models.md`` that shows its figures.
        recipe: Sections but for the method.
        method: Section of local learning.
        made_up: Section ``data`` of the same shape for what asks only about bytes and time.
        build: The model, where it is given from Python.
        num_test: Test samples, where that is no option of the data set.
        timed_steps: Steps of a run whose time is taken.
    """

    page: str
    recipe: dict[str, dict[str, Any]]
    method: dict[str, Any]
    made_up: dict[str, Any] = field(default_factory=dict)
    build: Callable[[], nn.Module] | None = None
    num_test: int | None = None
    timed_steps: int = 100

    @property
    def holds_text(self) -> bool:
        """Whether the final output is told by its perplexity."""
        return self.recipe["data"]["name"] == "stdlib-text"

    def asked(self, system: str, **sections: dict[str, Any]) -> Recipe:
        """The recipe of one of ``SYSTEMS``, with further keys."""
        method = {"name": "backprop"} if system == "backprop" else self.method
        both = {**self.recipe, "method": method, "runtime": {"stages": SYSTEMS[system]}}
        names = {*both, *sections}
        return Recipe.from_dict({n: {**both.get(n, {}), **sections.get(n, {})} for n in names})


def _own() -> nn.Sequential:
    """Eight layers on images (N, 1, 8, 8), and a head."""
    widths = (1, 32, 32, 32, 32, 64, 64, 64, 64)
    layers = [
        nn.Sequential(
            nn.Conv2d(before, width, 3, stride=1 + (before == 32 < width), padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        for before, width in pairwise(widths)
    ]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(*layers, head)


_DIGITS: Final = {"name": "digits", "batch_size": 64, "crop": 1}
_TEXT: Final = {"name": "stdlib-text", "length": 64, "batch_size": 16, "num_test": 256}
_LATER: Final = {"name": "dgl", "auxiliary": "auglocal", "auxiliary_options": {"depth": 1}}
_BLOCKS: Final = {"split": {"blocks": 4}}


def _text(model: dict[str, Any]) -> Family:
    """Trained as the recipe ``text-gpt`` does."""
    adamw = {"name": "adamw", "lr": 4e-3, "betas": [0.9, 0.95], "weight_decay": 0.05}
    recipe = {
        "data": _TEXT,
        "model": model,
        "optimizer": {**adamw, "clip_norm": 1.0},
        "schedule": {"warmup_epochs": 0.002},
        "train": {"epochs": 1, "max_steps": 100},
        **_BLOCKS,
    }
    return Family("language", recipe, _LATER, made_up={"num_test": 8}, timed_steps=90)


_NO_DROPOUT: Final = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}

FAMILIES: Final = {
    "timm, `vit_tiny_patch16_224` of width 64, digits": Family(
        "vision",
        {
            "data": _DIGITS,
            "model": {
                "name": "timm:vit_tiny_patch16_224",
                **{"patch_size": 4, "embed_dim": 64, "depth": 8, "num_heads": 4},
            },
            "optimizer": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.05},
            "schedule": {"warmup_epochs": 2},
            "train": {"epochs": 20},
            **_BLOCKS,
        },
        _LATER,
    ),
    "torchvision, `resnet18`, 4,000 images of CIFAR-10": Family(
        "vision",
        {
            "data": {"name": "cifar10", "batch_size": 64, "train_limit": 4000, "flip": True},
            "model": {"name": "torchvision:resnet18"},
            "optimizer": {"name": "sgd", "lr": 0.05, "weight_decay": 5e-4},
            "schedule": {"warmup_epochs": 1},
            "train": {"epochs": 3},
            **_BLOCKS,
        },
        {"name": "dgl"},
        made_up={
            **{"name": "synthetic", "shape": [3, 32, 32], "num_train": 4000, "num_test": 64},
            "train_limit": None,
        },
        num_test=2000,
        timed_steps=16,
    ),
    "transformers, `gpt2` of width 64": _text(
        {"name": "transformers:gpt2", "n_embd": 64, "n_layer": 8, "n_head": 4, "n_positions": 64}
        | _NO_DROPOUT
    ),
    "transformers, `llama` of width 64": _text(
        {
            "name": "transformers:llama",
            **{"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 8},
            **{"num_attention_heads": 4, "num_key_value_heads": 2},
        }
    ),
    "our `gpt` of width 64": _text(
        {"name": "gpt", "width": 64, "depth": 8, "heads": 4, "positions": "rotary"}
    ),
    "`nn.Sequential` of nine layers, digits": Family(
        "own",
        {
            "data": _DIGITS,
            "optimizer": {"name": "sgd", "lr": 0.05, "weight_decay": 5e-4},
            "schedule": {"warmup_epochs": 1},
            "train": {"epochs": 12},
            **_BLOCKS,
        },
        {"name": "dgl"},
        build=_own,
        timed_steps=400,
    ),
}
"""By what a table calls them."""
