"""What a method adds to a network: multiply-adds and parameters, as shares of the network's own.

Counted by torch's flop counter on one sample, so the figures do not depend on the machine. Encoders
of context count like auxiliary networks: the plain network has neither. What a loss computes apart
from them (similarities, gradients) does not count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ppll.blocks.blueprint import Blueprint
from ppll.blocks.modules import BlockModules
from ppll.data.loader import IMAGE
from ppll.methods.base import PREVIOUS, Lesson
from ppll.plain_attention import plain_attention
from ppll.site import BlockSite
from ppll.task_loss import build_task_loss

__all__ = ["Share", "auxiliary_share"]


@dataclass(frozen=True)
class Share:
    """What is added to a network, relative to what the network has itself: 0.25 is a quarter.

    Attributes:
        compute: Multiply-adds of one forward.
        parameters: Number of parameters.
    """

    compute: float
    parameters: float


def auxiliary_share(blueprint: Blueprint) -> Share:
    """The share of all auxiliary networks and encoders of context of a network cut into blocks.

    Raises:
        ModelError: The method cannot work on this network or with these cuts.
    """
    counter = FlopCounterMode(display=False)
    own, added = _Tally(counter), _Tally(counter)
    blocks = [blueprint.build_modules(i, torch.device("cpu")) for i in range(blueprint.num_blocks)]
    for modules in blocks:
        own.include(layer.module for layer in modules.layers)
        added.include([*modules.auxiliaries(), *modules.contexts()])
    with counter, plain_attention():
        for modules, site in zip(blocks, blueprint.sites, strict=True):
            _run(blueprint, modules, site)
    return Share(added.flops / own.flops, added.num_parameters / own.num_parameters)


class _Tally:
    """What modules compute in their own forward, whoever calls them or a part of them."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.flops = 0
        self.num_parameters = 0
        self._counter = counter
        self._before: list[int] = []

    def include(self, roots: Iterable[nn.Module]) -> None:
        for root in roots:
            root.eval()  # In training, batch norm refuses a single sample.
            self.num_parameters += sum(p.numel() for p in root.parameters())
            for part in root.modules():
                part.register_forward_pre_hook(self._enter)
                part.register_forward_hook(self._leave)

    def _enter(self, *_: Any) -> None:
        self._before.append(self._counter.get_total_flops())

    def _leave(self, *_: Any) -> None:
        before = self._before.pop()
        if not self._before:
            self.flops += self._counter.get_total_flops() - before


def _run(blueprint: Blueprint, modules: BlockModules, site: BlockSite) -> None:
    """One block's forward and local loss on one sample."""
    method = blueprint.method
    leaf = _sample(site.block_input_shape, torch.int64 if site.reads_tokens else torch.float32)
    leaf.requires_grad_(method.needs_input_gradient and not site.reads_tokens)
    inputs = leaf.clone()  # The counter's hooks cannot be where a gradient ends.
    image = _sample(site.input_shape, torch.int64 if site.holds_tokens else torch.uint8)
    fields = {IMAGE: image, PREVIOUS: _sample(site.previous_input_shape)}
    targets = _sample(site.output_shape[:-1], torch.int64)
    features, _ = modules(inputs, fields)
    lesson = Lesson(inputs, features, targets, fields)
    method.local_loss(modules.auxiliary, lesson, build_task_loss(blueprint.recipe, inputs.device))


def _sample(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros((1, *shape), dtype=dtype)
