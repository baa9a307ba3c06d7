"""A block's optimizer, and a learning rate that is a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim

from ppll.blocks.averages import AVERAGE
from ppll.blocks.loss_scale import LOSS_SCALE
from ppll.blocks.own_optimizer import build_own_optimizer
from ppll.errors import RecipeError
from ppll.memory_layout import like
from ppll.update_sections import OptimizerConfig, ScheduleConfig

__all__ = ["Schedule", "build_optimizer", "named_state", "restore_state"]

_UNDECAYED_MODULES = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.EmbeddingBag,
)


@dataclass(frozen=True)
class Schedule:
    """Learning rate of every step as a share of the highest.

    It keeps no state, so a resumed run or a longer one needs none.

    Args:
        config: Shape of the curve.
        num_steps: Steps of the whole run.
        steps_per_epoch: Steps of an epoch, the unit of the warm-up.
    """

    config: ScheduleConfig
    num_steps: int
    steps_per_epoch: int

    def factor(self, step: int) -> float:
        """Share of the highest learning rate for update number ``step``, from 1."""
        warmup = self.config.warmup_epochs * self.steps_per_epoch
        if step < warmup:
            return step / warmup
        if self.config.name == "constant":
            return 1.0
        if self.config.name == "multistep":
            passed = [m for m in self.config.milestones if step > m * self.steps_per_epoch]
            return float(self.config.gamma ** len(passed))
        progress = (step - max(1.0, warmup)) / max(1.0, self.num_steps - warmup)
        low = self.config.final_factor
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_optimizer(
    config: OptimizerConfig,
    block_index: int,
    modules: Iterable[nn.Module],
    device: torch.device | None = None,
) -> optim.Optimizer:
    """The optimizer of one block, over the trainable parameters of its modules.

    Norms, biases and embeddings are not decayed by ``"adamw"``, as its users expect, and are by
    SGD, as the literature of CIFAR ResNets has it, by Adam, whose decay is part of the gradient in
    the same way, and by a class that is named by its module, ``"torch.optim:AdamW"`` too, as where
    it is used alone; ``optimizer.decay_all`` chooses otherwise. What is tied within a layer is one
    parameter, and not decayed if one of its owners has it so. Where one kernel updates a block on a
    GPU, it reads the learning rate from there, so that the update can be recorded.

    Raises:
        RecipeError: A class that is named by its module cannot be imported, or does not take what
            the recipe gives it.
    """
    override = config.blocks.get(block_index)
    lr = override.lr if override and override.lr else config.lr
    decay = config.weight_decay
    if override is not None and override.weight_decay is not None:
        decay = override.weight_decay
    decay_all = config.name != "adamw" if config.decay_all is None else config.decay_all
    groups = _parameter_groups(modules, decay, decay_all)
    if config.is_own:
        return build_own_optimizer(config, groups, lr)
    on_gpu = bool(config.fused) and device is not None and device.type == "cuda"
    rate = torch.tensor(lr, device=device) if on_gpu else lr
    if config.name == "sgd":
        momentum, nesterov = config.momentum, config.nesterov
        return optim.SGD(groups, lr=rate, momentum=momentum, nesterov=nesterov, fused=config.fused)
    kind = optim.Adam if config.name == "adam" else optim.AdamW
    return kind(groups, lr=rate, betas=config.betas, fused=config.fused, capturable=on_gpu)


def _parameter_groups(
    modules: Iterable[nn.Module], decay: float, decay_all: bool
) -> list[dict[str, Any]]:
    owned = list(_own_parameters(modules))
    exempt = {p for module, name, p in owned if not decay_all and _is_exempt(module, name, p)}
    every = list(dict.fromkeys(p for _, _, p in owned))  # a tied one has several owners
    decayed, undecayed = [p for p in every if p not in exempt], [p for p in every if p in exempt]
    groups = [(decayed, decay), (undecayed, 0.0)]
    return [{"params": params, "weight_decay": wd} for params, wd in groups if params]


def _own_parameters(
    modules: Iterable[nn.Module],
) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for root in modules:
        for module in root.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    yield module, name, parameter


def _is_exempt(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    declared: frozenset[str] = getattr(module, "no_decay", frozenset())
    return parameter.ndim <= 1 or isinstance(module, _UNDECAYED_MODULES) or name in declared


def named_state(
    optimizer: optim.Optimizer, parameters: Iterable[tuple[str, nn.Parameter]]
) -> Iterator[tuple[str, Tensor]]:
    """The optimizer's tensors under the names of their parameters: ``NAME.exp_avg`` and so on.

    Raises:
        RecipeError: One has a name that means something else in a checkpoint.
    """
    for name, parameter in parameters:
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                _check_free(optimizer, key)
                yield f"{name}.{key}", value


def _check_free(optimizer: optim.Optimizer, key: object) -> None:
    if f".{key}" in (AVERAGE, LOSS_SCALE):
        raise RecipeError(
            f"optimizer {type(optimizer).__name__!r} keeps state[parameter][{key!r}], under which "
            f"a checkpoint holds what train.ema or a loss scale needs: give it another name."
        )


def restore_state(
    optimizer: optim.Optimizer,
    parameters: Iterable[tuple[str, nn.Parameter]],
    tensors: dict[str, Tensor],
) -> None:
    """Put back what ``named_state`` gave; a parameter without tensors starts afresh.

    Tensors come to the parameter's device and take its order in memory, all but a number called
    ``step``: torch counts on the processor, unless one kernel does all or graphs may record it.
    """
    counts_there = any(optimizer.defaults.get(key) for key in ("fused", "capturable"))
    for name, parameter in parameters:
        prefix = f"{name}."
        # A key has no dot, so a parameter's tensors are told from those of one nested below it.
        state = {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix) and "." not in key.removeprefix(prefix)
        }
        if state:
            optimizer.state[parameter] = {
                key: _beside(tensor, parameter)
                if counts_there or not _counts(key, tensor)
                else tensor
                for key, tensor in state.items()
            }


def _counts(key: str, tensor: Tensor) -> bool:
    return key == "step" and tensor.ndim == 0


def _beside(tensor: Tensor, parameter: Tensor) -> Tensor:
    return like(tensor.to(parameter.device), parameter)
