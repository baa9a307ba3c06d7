"""Small networks whose layers hand on more than one tensor, and the means to train them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import ppll
from ppll.blocks.block import Block
from ppll.blocks.blueprint import Blueprint
from ppll.config import Recipe
from ppll.job import draw_blueprint
from ppll.models import Network
from tests.interleaving import (
    NUM_CLASSES,
    OPTIMIZERS,
    MadeUpBatches,
    built_blocks,
    interleave,
    make_workers,
)

SHAPE = (1, 8, 8)


class Masked(NamedTuple):
    """A mask that comes before the features, so that the main tensor is not the first."""

    mask: Tensor
    features: Tensor


class MaskedStem(nn.Module):
    """Images to maps, and where they are bright: a tuple."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, 6, 3, padding=1)

    def forward(self, images: Tensor) -> Masked:
        return Masked(images.mean(1, keepdim=True) > 0, self.convolution(images))


class MaskedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.1)

    def forward(self, given: Masked) -> Masked:
        made = self.norm(self.convolution(torch.relu(given.features)))
        return Masked(given.mask, given.features + self.dropout(made) * given.mask)


class MaskedHead(nn.Module):
    def __init__(self, num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.linear = nn.Linear(6, num_classes)

    def forward(self, given: Masked) -> Tensor:
        return self.linear((given.features * given.mask).mean((2, 3)))


class DictStem(nn.Module):
    """Images to rows of tokens, the first tokens beside them, and a count and a mask of each."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 8)

    def forward(self, images: Tensor) -> dict[str, Any]:
        pixels = images.flatten(2).transpose(1, 2)
        tokens = self.linear(pixels)
        bright = pixels.mean(2) > 0
        return {"tokens": tokens, "first": tokens[:, :4], "marks": [bright, bright.sum(1)]}


class DictLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 8)
        self.dropout = nn.Dropout(0.1)

    def forward(self, given: dict[str, Any]) -> dict[str, Any]:
        tokens, (bright, count) = given["tokens"], given["marks"]
        mean = (tokens * bright[..., None]).sum(1) / (count[:, None] + 1)
        made = self.dropout(self.linear(self.norm(tokens + mean[:, None])))
        return {**given, "tokens": tokens + made + given["first"].mean(1, keepdim=True)}


class DictHead(nn.Module):
    def __init__(self, num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.linear = nn.Linear(8, num_classes)

    def forward(self, given: dict[str, Any]) -> Tensor:
        return self.linear(given["tokens"].mean(1))


def masked_model(channels: int = 1, num_classes: int = NUM_CLASSES) -> nn.Sequential:
    """Layers that hand on a tuple: a mask and maps."""
    layers = [MaskedLayer() for _ in range(4)]
    return nn.Sequential(MaskedStem(channels), *layers, MaskedHead(num_classes))


def dict_model(channels: int = 1, num_classes: int = NUM_CLASSES) -> nn.Sequential:
    """Layers that hand on a dict: tokens, the first of them, and a list of marks."""
    layers = [DictLayer() for _ in range(4)]
    return nn.Sequential(DictStem(channels), *layers, DictHead(num_classes))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, features: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        made = torch.tanh(self.linear(features))
        return features + made * gate, gate & (made.mean(1, keepdim=True) > 0)


class GatedModel(nn.Module):
    """A forward of its own in which layers read and return two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 8)
        self.layers = nn.ModuleList([Gated() for _ in range(4)])
        self.head = nn.Linear(8, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1)
        features, gate = self.stem(pixels), pixels.mean(1, keepdim=True) > -1
        for layer in self.layers:
            features, gate = layer(features, gate)
        return self.head(features * gate)


MODELS: dict[str, Callable[..., nn.Sequential]] = {"tuple": masked_model, "dict": dict_model}


def from_seed(name: str) -> nn.Sequential:
    torch.manual_seed(0)
    return MODELS[name]()


def made_up(num: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num, *SHAPE, generator=generator)
    return images, (images[:, 0].mean((1, 2)) > 0).long() + (images[:, 0, 0, 0] > 0).long()


def data() -> ppll.Dataset:
    return ppll.Dataset.from_arrays(
        train=made_up(32, 1), test=made_up(12, 2), num_classes=NUM_CLASSES
    )


def sections(**changes: dict[str, Any]) -> dict[str, Any]:
    """A recipe of four blocks, one epoch of four steps."""
    base: dict[str, dict[str, Any]] = {
        "data": {"batch_size": 8},
        "split": {"blocks": 4},
        "optimizer": OPTIMIZERS["adamw"],
        "schedule": {"name": "constant"},
        "train": {"epochs": 1, "seed": 5},
        "checkpoint": {"every_steps": 2},
    }
    return {key: {**base.get(key, {}), **changes.get(key, {})} for key in {**base, **changes}}


def blueprint_of(model: nn.Module | list[nn.Module], **changes: dict[str, Any]) -> Blueprint:
    """The model cut as the changed recipe says."""
    recipe = Recipe.from_dict(sections(**changes))
    return draw_blueprint(recipe, MadeUpBatches().facts, Network.from_modules(model))


def train_interleaved(
    blueprint: Blueprint,
    num_stages: int,
    choose: Callable[[int], int] = lambda num_able: 0,
) -> list[Block]:
    """The blocks after workers that take turns as ``choose`` says, over poisoned channels."""
    blocks = built_blocks(blueprint)
    interleave(make_workers(blueprint, blocks, MadeUpBatches(), num_stages, 2), choose)
    return blocks
