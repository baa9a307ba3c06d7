"""The recipe of a run: one frozen tree, validated at birth (no torch).

A recipe is a TOML file with the sections below. Everything that changes the result stands in
``data``, ``model``, ``split``, ``method``, ``loss``, ``optimizer``, ``schedule`` and ``train``;
what stands in ``runtime``, ``checkpoint`` and ``track`` never does. Sections that name a thing of a
shelf (a data set, a model, a method) also hold the options of that thing, which the shelf checks
when it builds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Self

import pydantic

from ppll.errors import RecipeError, up_to
from ppll.recipe_problems import explain
from ppll.recipe_text import apply_settings, check_plain, shown, without_none, write_toml
from ppll.section import Section
from ppll.sections import (
    CheckpointConfig,
    DataConfig,
    LossConfig,
    MethodConfig,
    ModelConfig,
    RuntimeConfig,
    SplitConfig,
    TrackConfig,
    TrainConfig,
)
from ppll.update_sections import OptimizerConfig, ScheduleConfig

__all__ = ["Recipe"]


class Recipe(Section):
    """One run, whole: the same recipe gives the same bits on any number of stages."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    split: SplitConfig = SplitConfig()
    method: MethodConfig = MethodConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    track: TrackConfig = TrackConfig()

    @pydantic.model_validator(mode="after")
    def _counts_fit(self) -> Self:
        if self.runtime.stages > self.split.blocks:
            raise ValueError(
                f"runtime.stages = {self.runtime.stages}, but split.blocks = {self.split.blocks}, "
                f"and a stage runs one block or more: "
                f"ask for {up_to(self.split.blocks, 'stage')}, or for more blocks"
            )
        self._check_replicas()
        smallest_shard = self.data.batch_size // self.most_replicas
        if self.train.accumulate > smallest_shard:
            shard = "a replica's shard of " if self.most_replicas > 1 else ""
            raise ValueError(
                f"train.accumulate = {self.train.accumulate} parts of {shard}data.batch_size = "
                f"{self.data.batch_size} samples: ask for {up_to(smallest_shard, 'part')}"
            )
        self._check_loss()
        self._check_steps()
        self._check_sharding()
        if self.checkpoint.keeps_best and not self.data.validation:
            raise ValueError(
                'checkpoint.keep = "best" goes by the validation accuracy, but data.validation is '
                "0: keep some samples back, such as data.validation = 0.1, or keep a number of "
                "checkpoints"
            )
        overrides = {"optimizer": [*self.optimizer.blocks], "schedule": [*self.schedule.blocks]}
        for section, indices in overrides.items():
            for index in indices:
                if not 0 <= index < self.split.blocks:
                    raise ValueError(
                        f"{section}.blocks.{index}: blocks count from 0 to {self.split.blocks - 1}"
                    )
        return self

    def _check_replicas(self) -> None:
        replicas = self.train.replicas
        if self.most_replicas > self.data.batch_size:
            raise ValueError(
                f"train.replicas = {shown(replicas)} share data.batch_size = "
                f"{self.data.batch_size} samples: ask for {self._fewer_replicas()}"
            )
        if isinstance(replicas, int):
            return
        if len(replicas) != self.split.blocks:
            raise ValueError(
                f"train.replicas = {list(replicas)} has {len(replicas)} number(s) for "
                f"{self.split.blocks} blocks (split.blocks): give one a block, or one for all, "
                f"as a method needs that trains the network as one, such as backprop"
            )
        for block, (one, other) in enumerate(itertools.pairwise(replicas), start=1):
            if max(one, other) % min(one, other):
                raise ValueError(
                    f"train.replicas: {one} of block {block - 1} and {other} of block {block} "
                    f"cannot share what goes from one to the other: choose numbers of which one "
                    f"divides the other"
                )
        for block, num in enumerate(replicas):
            if self.most_replicas % num:
                raise ValueError(
                    f"train.replicas: {num} of block {block} do not divide {self.most_replicas}, "
                    f"the largest number, so some of those might get no samples: choose others"
                )

    def _fewer_replicas(self) -> str:
        """How many there may be at most, in words."""
        most = self.data.batch_size
        one_for_all = isinstance(self.train.replicas, int)
        return up_to(most, "replica") if one_for_all else f"{most} or fewer for every block"

    def _check_loss(self) -> None:
        """What is done to targets for cross-entropy, and another loss may not read."""
        hindrances = {
            "train.label_smoothing": self.train.label_smoothing > 0,
            "data.mixup and data.cutmix, which give a sample shares of two classes": (
                self.data.mixes
            ),
        }
        for hindrance, is_there in hindrances.items():
            if self.loss.is_own and is_there:
                raise ValueError(
                    f"loss.name = {self.loss.name!r} is not possible with {hindrance}: change one "
                    f"of them"
                )

    def _check_steps(self) -> None:
        """What compiled and recorded steps cannot be: a graph does every time what it did once."""
        train = self.train
        if self.runtime.concurrent_blocks and not train.cuda_graphs:
            raise ValueError(
                "runtime.concurrent_blocks lets recorded steps overlap, but nothing is recorded: "
                "set train.cuda_graphs = true"
            )
        if train.compile and train.activation_checkpointing:
            raise ValueError(
                "train.compile decides by itself what is computed again: set it to false, or "
                "train.activation_checkpointing"
            )
        hindrances = {
            'train.precision = "fp16", whose loss scale decides about every update': (
                train.precision == "fp16"
            ),
            'train.on_nonfinite = "skip", which decides about every update': (
                train.on_nonfinite == "skip"
            ),
            "train.accumulate above 1": train.accumulate > 1,
            "train.replicas above 1": self.most_replicas > 1,
            "train.activation_checkpointing, which looks up random states": (
                train.activation_checkpointing
            ),
            "optimizer.fused = false": self.optimizer.fused is False,
            "an optimizer that is named by its module": self.optimizer.is_own,
        }
        for hindrance, is_there in hindrances.items():
            if train.cuda_graphs and is_there:
                raise ValueError(
                    f"train.cuda_graphs cannot record a step with {hindrance}: change one of them"
                )

    def _check_sharding(self) -> None:
        """What cannot be computed from shares of a block, or not with the same bits."""
        train = self.train
        hindrances = {
            "train.replicas = 1, where nobody is to share with": self.most_replicas == 1,
            "train.compile": train.compile,
            "train.channels_last": train.channels_last,
            "optimizer.fused, whose bits depend on where a tensor is cut": bool(
                self.optimizer.fused
            ),
            "an optimizer that is named by its module, which may look at whole tensors": (
                self.optimizer.is_own
            ),
            'train.accumulate above 1 and train.on_nonfinite = "skip"': (
                train.accumulate > 1 and train.on_nonfinite == "skip"
            ),
        }
        for hindrance, is_there in hindrances.items():
            if self.runtime.sharding != "none" and is_there:
                raise ValueError(
                    f'runtime.sharding = "fsdp" is not possible with {hindrance}: change one of '
                    f"them"
                )

    @property
    def updates(self) -> OptimizerConfig:
        """The optimizer as it is built: recorded updates are fused."""
        if not self.train.cuda_graphs:
            return self.optimizer
        return self.optimizer.model_copy(update={"fused": True})

    def num_steps(self, steps_per_epoch: int) -> int:
        """Training batches of the whole run."""
        num_steps = steps_per_epoch * self.train.epochs
        return min(num_steps, self.train.max_steps or num_steps)

    @property
    def block_replicas(self) -> tuple[int, ...]:
        """Of every block, how many processes share each of its batches."""
        replicas = self.train.replicas
        return (replicas,) * self.split.blocks if isinstance(replicas, int) else replicas

    @property
    def most_replicas(self) -> int:
        """Of the block that has most."""
        return max(self.block_replicas)

    @property
    def has_processes(self) -> bool:
        """Whether stages or replicas have processes of their own."""
        return self.runtime.stages > 1 or self.most_replicas > 1

    @property
    def message_size(self) -> int:
        """Most samples of a training message of the block with the fewest replicas."""
        return self.message_size_among(min(self.block_replicas))

    def message_size_among(self, num_replicas: int) -> int:
        """Samples of a training message where so many replicas share every batch, rounded up."""
        return -(-self.data.batch_size // (self.train.accumulate * num_replicas))

    @property
    def largest_messages(self) -> tuple[int, ...]:
        """Of every block, no training message has more samples, however unevenly shards are cut and
        joined before it."""
        most, first = self.most_replicas, self.block_replicas[0]
        largest = [self.message_size_among(first)]
        if self.train.accumulate > 1:  # A short batch of fewer parts may have larger ones.
            largest = [max(*largest, most // first * (self._usual_part + 1))]
        for before, after in itertools.pairwise(self.block_replicas):
            cut = -(-largest[-1] * before // after)
            largest.append(min(cut, self.data.batch_size))
        return tuple(largest)

    def num_parts(self, num_samples: int) -> int:
        """Messages that a training batch of so many samples travels as, in every replica; fewer
        than others where it is short."""
        smallest_shard = num_samples // self.most_replicas
        return min(self.train.accumulate, -(-smallest_shard // self._usual_part))

    @property
    def _usual_part(self) -> int:
        """Least samples of a message of a full batch."""
        return self.data.batch_size // (self.train.accumulate * self.most_replicas)

    @property
    def eval_batch_size(self) -> int:
        """Samples of an evaluation batch."""
        return self.data.eval_batch_size or self.message_size

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Self:
        """Make a recipe from nested dictionaries, as TOML gives them.

        Raises:
            RecipeError: A key is unknown or a value is not allowed.
        """
        if not isinstance(tree, Mapping):
            raise RecipeError(
                f"a recipe is {tree!r}: give sections of keys, as in {{'train': {{'epochs': 3}}}}, "
                f"a recipe file, or the name of a shipped one."
            )
        tree = {name: without_none(section) for name, section in tree.items()}
        check_plain({k: v for k, v in tree.items() if not isinstance(v, Section)})
        try:
            return cls.model_validate(tree)
        except pydantic.ValidationError as error:
            raise RecipeError(explain(error, cls)) from None

    def with_settings(self, settings: Iterable[str]) -> Self:
        """A copy with ``SECTION.KEY=VALUE`` settings applied, as ``--set`` gives them.

        Another ``method.name`` leaves no option of the method before.

        Raises:
            RecipeError: A setting cannot be read, or what comes out is not allowed.
        """
        tree = self.model_dump(mode="json", exclude_unset=True)
        apply_settings(tree, settings)
        return type(self).from_dict(tree)

    def with_absolute_paths(self) -> Self:
        """A copy that means the same files in any working folder."""
        data, model = self.data, self.model
        if data.root is not None:
            data = data.model_copy(update={"root": data.root.absolute()})
        if model.weights is not None:
            model = model.model_copy(update={"weights": model.weights.absolute()})
        return self.model_copy(update={"data": data, "model": model})

    def without_overrides(self) -> Self:
        """A copy in which no block has an optimizer or a schedule that differs from the others'."""
        optimizer = self.optimizer.model_copy(update={"blocks": {}})
        schedule = self.schedule.model_copy(update={"blocks": {}})
        return self.model_copy(update={"optimizer": optimizer, "schedule": schedule})

    def to_toml(self) -> str:
        """The whole recipe, defaults included, as TOML that reads back to an equal recipe."""
        return write_toml(self.model_dump(mode="json", exclude_none=True))
