"""The sections of a recipe that say how parameters are updated: optimizer and schedule."""

from __future__ import annotations

from typing import Any, Final, Literal, Self

import pydantic
from pydantic import Field

from ppll.errors import unknown_name
from ppll.own_class import is_own_class
from ppll.section import Factor, NonNegative, Positive, Section, Share

__all__ = ["SHELF_OPTIMIZERS", "BlockOverride", "OptimizerConfig"]
__all__ += ["ScheduleConfig", "ScheduleOverride"]

SHELF_OPTIMIZERS: Final = ("sgd", "adam", "adamw")
Curve = Literal["cosine", "constant", "multistep"]


class BlockOverride(Section):
    """What one block's optimizer does differently."""

    lr: Positive | None = None
    """Highest learning rate."""
    weight_decay: NonNegative | None = None
    """As above."""


class OptimizerConfig(Section):
    """How a block's parameters are updated; every block has an optimizer of its own."""

    name: str = "sgd"
    """``"sgd"``, ``"adam"`` or ``"adamw"`` of torch; or any class, such as
    ``"torch.optim:RAdam"`` or one of your own, as ``"module:Class"``."""
    lr: Positive = 0.1
    """Highest learning rate."""
    momentum: Share = 0.9
    """SGD only."""
    nesterov: bool = True
    """SGD only."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Adam and AdamW only."""
    weight_decay: NonNegative = 5e-4
    """SGD and Adam add it to the gradient, AdamW takes it from the parameters; other classes get
    it, and need 0 where they take none."""
    options: dict[str, Any] = Field(default={})
    """What else ``__init__`` of a ``"module:Class"`` takes, such as ``options.betas``."""
    decay_all: bool | None = None
    """Decay norms, biases and embeddings too; by default all but ``"adamw"`` do, a class by its
    module decays all."""
    fused: bool | None = None
    """One kernel for the whole update of a block; by default torch chooses. The bits differ."""
    clip_norm: Positive | None = None
    """Largest norm of a block's gradient; longer ones are scaled down."""
    blocks: dict[int, BlockOverride] = Field(default={})
    """Overrides by block index, such as ``blocks.0.lr = 0.05``."""

    @pydantic.field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in SHELF_OPTIMIZERS and not is_own_class(name):
            raise ValueError(
                unknown_name(
                    "optimizer",
                    name,
                    [*SHELF_OPTIMIZERS, "module:Class (such as torch.optim:RAdam)"],
                ).rstrip(".")
            )
        return name

    @pydantic.model_validator(mode="after")
    def _keys_belong_together(self) -> Self:
        if self.options and not self.is_own:
            raise ValueError(
                f'optimizer.options are for a "module:Class", found optimizer.name = '
                f"{self.name!r}: its options have keys of their own"
            )
        if self.fused is not None and self.is_own:
            raise ValueError(
                f"optimizer.fused is of {', '.join(SHELF_OPTIMIZERS)}, found optimizer.name = "
                f"{self.name!r}: leave it out"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError(
                "optimizer.nesterov needs optimizer.momentum above 0: raise it, or set "
                "optimizer.nesterov = false"
            )
        return self

    @property
    def is_own(self) -> bool:
        """Whether it is a class that is named by its module."""
        return is_own_class(self.name)

    @property
    def num_states(self) -> int:
        """Tensors that it keeps for every parameter, of the parameter's size; 2 of a class that is
        named by its module, of which that is not known."""
        return int(self.momentum > 0) if self.name == "sgd" else 2


class ScheduleOverride(Section):
    """What one block's schedule does differently."""

    name: Curve | None = None
    """As above."""
    warmup_epochs: NonNegative | None = None
    """As above."""
    final_factor: Factor | None = None
    """As above."""
    milestones: tuple[Positive, ...] | None = None
    """As above."""
    gamma: Factor | None = None
    """As above."""


class ScheduleConfig(Section):
    """How the learning rate changes from step to step; a function of the step alone."""

    name: Curve = "cosine"
    """``"cosine"``: down to ``final_factor`` along half a cosine; ``"constant"``: the same to the
    end; ``"multistep"``: times ``gamma`` at every one of the ``milestones``."""
    warmup_epochs: NonNegative = 0.0
    """Epochs (or parts of one) in which the learning rate rises from zero on a line."""
    final_factor: Factor = 0.0
    """Learning rate at the end as a share of the highest; cosine only."""
    milestones: tuple[Positive, ...] = ()
    """Epochs after which the rate falls, ascending, such as ``[80, 120]``; multistep only."""
    gamma: Factor = 0.1
    """What the learning rate is multiplied by at a milestone; multistep only."""
    blocks: dict[int, ScheduleOverride] = Field(default={})
    """Overrides by block index, such as ``blocks.0.warmup_epochs = 5``."""

    @pydantic.model_validator(mode="after")
    def _multistep_has_milestones(self) -> Self:
        self._check_milestones("schedule", self.milestones)
        for index, override in self.blocks.items():
            place = f"schedule.blocks.{index}"
            self.of_block(index)._check_milestones(place, override.milestones)
        return self

    def _check_milestones(self, place: str, given: tuple[float, ...] | None) -> None:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"{place}.milestones must ascend, found {list(self.milestones)}")
        if self.name == "multistep" and not self.milestones:
            raise ValueError(
                f'{place}.name = "multistep" needs {place}.milestones, such as [80, 120]'
            )
        if given and self.name != "multistep":
            raise ValueError(
                f'{place}.milestones are for "multistep", found "{self.name}": set {place}.name = '
                f'"multistep", or leave them out'
            )

    def knows_end(self, num_blocks: int) -> bool:
        """Whether the learning rate of a step depends on how many follow, in any block."""
        return any(self.of_block(index).name == "cosine" for index in range(num_blocks))

    def of_block(self, block_index: int) -> Self:
        """One block's schedule, its overrides applied."""
        override = self.blocks.get(block_index, ScheduleOverride())
        return self.model_copy(update=override.model_dump(exclude_none=True))
