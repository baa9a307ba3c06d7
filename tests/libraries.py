"""Small models of other libraries, and the means to have them; skipped where one is missing."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.structures import dict_model, masked_model

DECLARING = Path(__file__).parent / "declaring"
"""Folder whose ``sitecustomize`` lets a process import torchvision beside any torch."""


def library(name: str) -> Any:
    """A library; a test is skipped where it is not installed."""
    importlib.import_module("tests.declaring.sitecustomize")
    pytest.importorskip(name, reason=f"{name} is not installed: it is in the extra 'models'")
    return importlib.import_module(name)


def environment(**variables: str) -> dict[str, str]:
    """Of a command whose processes can import torchvision."""
    path = os.pathsep.join([str(DECLARING), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, **variables}


IMAGES = {
    "name": "synthetic",
    "shape": [3, 16, 16],
    "num_classes": 5,
    "num_train": 32,
    "num_test": 8,
    "batch_size": 8,
}
TEXT = {
    "name": "stdlib-text",
    "length": 12,
    "only": ["idlelib"],
    "num_test": 8,
    "batch_size": 8,
    "train_limit": 32,
}


@dataclass(frozen=True)
class Family:
    """A small model of a library, as a recipe asks for it and as the library builds it.

    Attributes:
        package: The library.
        model: Section ``model`` of a recipe.
        build: The same network from the library itself, of its imported package.
        data: Section ``data`` of a recipe.
        logits: Of what the network returns.
    """

    package: str
    model: dict[str, Any]
    build: Callable[[Any], nn.Module]
    data: dict[str, Any] = field(default_factory=lambda: dict(IMAGES))
    logits: Callable[[Any], Tensor] = lambda output: output

    def recipe(self, **sections: dict[str, Any]) -> dict[str, Any]:
        """Four blocks, one epoch of four steps."""
        base: dict[str, dict[str, Any]] = {
            "data": self.data,
            "model": self.model,
            "split": {"blocks": 4},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "constant"},
            "train": {"epochs": 1, "seed": 5},
            "checkpoint": {"every_steps": 2},
        }
        return {key: {**base.get(key, {}), **sections.get(key, {})} for key in {**base, **sections}}

    def whole(self) -> nn.Module:
        """The library's own network, from a seed."""
        package = library(self.package)
        torch.manual_seed(3)
        return self.build(package)

    def sample(self, num: int = 3) -> Tensor:
        """A batch of its input."""
        generator = torch.Generator().manual_seed(1)
        if self.data["name"] == "synthetic":
            return torch.randn(num, *self.data["shape"], generator=generator)
        return torch.randint(256, (num, self.data["length"]), generator=generator)


_GPT2 = {"n_layer": 4, "n_embd": 16, "n_head": 2, "n_positions": 12}
_LLAMA = {
    "num_hidden_layers": 4,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
_VIT = {"patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2}
_NO_MARKS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def _torchvision_vit(package: Any) -> nn.Module:
    sizes = {"image_size": 16, "patch_size": 4, "num_layers": 4, "num_heads": 2}
    model: nn.Module = package.models.VisionTransformer(
        **sizes, hidden_dim=16, mlp_dim=32, num_classes=5, dropout=0.1
    )
    return model


FAMILIES = {
    "timm-vit": Family(
        "timm",
        {"name": "timm:vit_tiny_patch16_224", "proj_drop_rate": 0.1, "drop_path_rate": 0.1, **_VIT},
        lambda timm: timm.create_model(
            "vit_tiny_patch16_224", img_size=16, num_classes=5, proj_drop_rate=0.1, **_VIT
        ),
    ),
    "timm-resnet": Family(
        "timm",
        {"name": "timm:resnet10t", "channels": [8, 8, 16, 16], "stem_width": 4},
        lambda timm: timm.create_model(
            "resnet10t", num_classes=5, channels=[8, 8, 16, 16], stem_width=4
        ),
    ),
    "torchvision-mobilenet": Family(
        "torchvision",
        {"name": "torchvision:mobilenet_v2", "width_mult": 0.25},
        lambda torchvision: torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.25),
    ),
    "gpt2": Family(
        "transformers",
        {"name": "transformers:gpt2", **_GPT2},
        lambda transformers: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=256, tie_word_embeddings=False, **_GPT2, **_NO_MARKS)
        ),
        TEXT,
        lambda output: output.logits,
    ),
    "llama": Family(
        "transformers",
        {"name": "transformers:llama", **_LLAMA},
        lambda transformers: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(vocab_size=256, **_LLAMA, **_NO_MARKS)
        ),
        TEXT,
        lambda output: output.logits,
    ),
}
"""By name; of torchvision no vision transformer and no ResNet that has a name is small enough."""

OWN = {
    "own-tuple": Family("torch", {}, lambda torch: masked_model(3, 5)),
    "own-dict": Family("torch", {}, lambda torch: dict_model(3, 5)),
}
"""Given as models from Python; their layers hand on more than one tensor."""

TORCHVISION_RESNET = Family(
    "torchvision",
    {"name": "torchvision:resnet18"},
    lambda torchvision: torchvision.models.resnet18(num_classes=5),
)
"""A hundred megabytes a checkpoint."""

TORCHVISION_VIT = Family("torchvision", {}, _torchvision_vit)
"""Given as a model from Python."""
