"""How a block's parameters change: gradients, clipping, optimizer, schedule, averages, loss scale.

A batch that is left out leaves no trace: parameters, optimizer, buffers and averages stay as they
were before it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn, optim

from ppll.blocks.alone import Alone
from ppll.blocks.averages import AVERAGE, Averages
from ppll.blocks.loss_scale import LOSS_SCALE, LossScale
from ppll.blocks.modules import BlockModules
from ppll.blocks.optimization import Schedule, named_state, restore_state

__all__ = ["Updates"]


class Updates:
    """One block's updates.

    Args:
        modules: What the block computes with.
        optimizer: Over the trainable parameters of layers and auxiliary network.
        schedule: Learning rate by step.
        clip_norm: Largest norm of the block's gradient.
        leaves_out: Whether batches with a gradient that is not finite are left out.
        average_decay: Of moving averages of the parameters; 0 for none.
        scales_loss: Whether the loss is scaled, as float16 needs it. Then an overflow is left out.
    """

    def __init__(
        self,
        modules: BlockModules,
        optimizer: optim.Optimizer,
        schedule: Schedule,
        *,
        clip_norm: float | None = None,
        leaves_out: bool = False,
        average_decay: float = 0.0,
        scales_loss: bool = False,
    ) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self.averages: Averages | None = None
        self.loss_scale = LossScale() if scales_loss else None
        self._modules = modules
        self._average_decay = average_decay
        self._clip_norm = clip_norm
        self._leaves_out = leaves_out or scales_loss
        self._base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self._before: list[Tensor] = []
        self._updated = False
        self._parameters = dict(modules.named_parameters())
        self.join(Alone())

    def join(self, exchange: Alone) -> None:
        """Update what a replica keeps of the parameters, before any values are there."""
        self._exchange = exchange
        kept = exchange.kept(self._modules)
        names = {id(p): name for name, p in self._parameters.items()}
        self._trained: dict[str, nn.Parameter] = {}
        for group in self.optimizer.param_groups:
            own = {names[id(p)]: kept[names[id(p)]] for p in group["params"]}
            group["params"] = list(own.values())
            self._trained |= own
        self._parameters = kept
        if self._average_decay:
            trained = ((n, p) for n, p in kept.items() if p.requires_grad)
            self.averages = Averages(trained, self._average_decay)

    def begin(self, step: int) -> None:
        """A batch begins: its learning rate, no gradients, what is put back if it is left out."""
        self._set_learning_rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        if self._leaves_out:
            self._before = [tensor.clone() for tensor in self._untrained()]

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss (scalar)."""
        if self.loss_scale is not None:
            loss = self.loss_scale.scaled(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def finish(self) -> bool:
        """A batch ends: clip and update, or leave the batch out.

        Returns:
            False where gradients are not finite and no smaller loss scale could change that.
        """
        if self.loss_scale is not None:
            self.loss_scale.unscale(self._trained.values())
        if self._leaves_out and not self._norm().isfinite():
            self.leave_out()
            return self.loss_scale is None or self.loss_scale.shrink()
        if self._clip_norm is not None:
            trained = self._trained.values()
            nn.utils.clip_grads_with_norm_(trained, self._clip_norm, self._norm())
        self.optimizer.step()
        self._updated = True
        return True

    def settle(self, step: int) -> None:
        """Let averages and loss scale follow the batch that ended, if it was not left out."""
        if not self._updated:
            return
        if self.averages is not None:
            self.averages.update(step)
        if self.loss_scale is not None:
            self.loss_scale.grow()

    def leave_out(self) -> None:
        """A batch ends and leaves no trace."""
        self._updated = False
        with torch.no_grad():
            for tensor, before in zip(self._untrained(), self._before, strict=True):
                tensor.copy_(before)

    def named_state(self) -> Iterator[tuple[str, Tensor]]:
        """The optimizer's tensors and averages by parameter, and the loss scale."""
        yield from named_state(self.optimizer, self._parameters.items())
        if self.averages is not None:
            yield from self.averages.named()
        if self.loss_scale is not None:
            yield self._scale_name, self.loss_scale.tensor()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over what ``named_state`` gave; what is missing starts afresh."""
        others = (AVERAGE, LOSS_SCALE)
        state = {n: t for n, t in tensors.items() if not n.endswith(others)}
        restore_state(self.optimizer, self._parameters.items(), state)
        if self.averages is not None:
            self.averages.load(tensors)
        if self.loss_scale is not None:
            self.loss_scale.load(tensors.get(self._scale_name))

    @property
    def _scale_name(self) -> str:
        return self._modules.auxiliary_name + LOSS_SCALE

    def _norm(self) -> Tensor:
        gradients = {n: p.grad for n, p in self._trained.items() if p.grad is not None}
        return self._exchange.norm(gradients)

    def _set_learning_rate(self, step: int) -> None:
        factor = self.schedule.factor(step)
        for group, lr in zip(self.optimizer.param_groups, self._base_lrs, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr * factor)
            else:
                group["lr"] = lr * factor

    def _untrained(self) -> Iterator[Tensor]:
        """What changes without the optimizer: buffers, and averages of parameters."""
        for _, module in self._modules.named():
            yield from module.buffers()
            yield from (p for p in module.parameters() if not p.requires_grad)
