"""The recipe of a run: one frozen tree, validated at birth (no torch).

A recipe is a TOML file with the sections below. Everything that changes the result stands in
``data``, ``model``, ``split``, ``method``, ``optimizer``, ``schedule`` and ``train``; what
stands in ``runtime`` and ``checkpoint`` never does. Sections that name a thing of a shelf (a data
set, a model, a method) also hold the options of that thing, which the shelf checks when it builds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field

from ppll.errors import RecipeError, unknown_name
from ppll.recipe_text import apply_setting, check_plain, shown, without_none, write_toml

__all__ = [
    "BlockOverride",
    "CheckpointConfig",
    "DataConfig",
    "MethodConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Recipe",
    "RuntimeConfig",
    "ScheduleConfig",
    "SplitConfig",
    "TrainConfig",
]

Count = Annotated[int, Field(ge=1, lt=2**63)]
Number = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _usable(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError(f"no path holds a zero byte, found {str(path)!r}")
    return path


UsablePath = Annotated[Path, pydantic.AfterValidator(_usable)]

Cuts = Literal["even", "balanced", "infopro", "infopro-memory", "contsup"] | tuple[Count, ...]


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )


class _NamedSection(_Section):
    """A section that names a thing of a shelf and holds its options."""

    model_config = pydantic.ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the named thing."""
        return dict(self.model_extra or {})


class DataConfig(_NamedSection):
    """What is trained on."""

    name: str = "digits"
    """A data set; ``ppll datasets`` lists them."""
    root: UsablePath | None = None
    """Folder of local files; without it the environment variable PPLL_DATA is asked."""
    batch_size: Count = 128
    """Samples of a training batch."""
    eval_batch_size: Count | None = None
    """Samples of an evaluation batch; without it, as many as in a training message."""
    validation: int | float = 0
    """Part of the training set kept for validation: a share below 1 or a number of samples."""
    train_limit: Count | None = None
    """Use only the first so many training samples."""
    drop_last: bool = False
    """Leave out a last training batch that is not full."""
    crop: Number = 0
    """Pad training images by so many pixels and crop them back at a random place."""
    flip: bool = False
    """Mirror every other training image, at random."""

    @pydantic.field_validator("validation")
    @classmethod
    def _validation_is_share_or_number(cls, validation: int | float) -> int | float:
        is_number = 1 <= validation < 2**63 and validation == int(validation)
        if not (0 <= validation < 1 or is_number):
            raise ValueError(
                f"must be a share from 0 to below 1, or a whole number of samples, "
                f"found {shown(validation)}"
            )
        return int(validation) if validation >= 1 else validation


class ModelConfig(_NamedSection):
    """What is trained."""

    name: str = "resnet32"
    """A network; ``ppll models`` lists them."""
    weights: UsablePath | None = None
    """Start from these values: a run folder, or a file of ``ppll export``."""


class SplitConfig(_Section):
    """Where the network is cut. Cuts are the algorithm: no run moves them."""

    blocks: Count = 4
    """Number of blocks (K in papers)."""
    cuts: (
        Literal["even", "balanced", "infopro", "infopro-memory", "contsup"] | tuple[Count, ...]
    ) = "even"
    """``"even"``; those of a paper by name; ``"balanced"``, which ``ppll plan`` writes out; or the
    first layer of every block but the first, ascending."""

    @pydantic.model_validator(mode="after")
    def _cuts_match_blocks(self) -> Self:
        if isinstance(self.cuts, str):
            return self
        if list(self.cuts) != sorted(set(self.cuts)):
            raise ValueError(f"split.cuts must ascend, found {list(self.cuts)}")
        if len(self.cuts) != self.blocks - 1:
            raise ValueError(
                f"split.cuts makes {len(self.cuts) + 1} blocks, but split.blocks = {self.blocks}"
            )
        return self


class MethodConfig(_NamedSection):
    """How a block learns."""

    name: str = "dgl"
    """A method; ``ppll methods`` lists them."""
    auxiliary: str | None = None
    """An auxiliary network other than the method's own."""


class BlockOverride(_Section):
    """What one block's optimizer does differently."""

    lr: Positive | None = None
    weight_decay: NonNegative | None = None


class OptimizerConfig(_Section):
    """How a block's parameters are updated; every block has an optimizer of its own."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.1
    momentum: Share = 0.9
    """SGD only."""
    nesterov: bool = True
    """SGD only."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """AdamW only."""
    weight_decay: NonNegative = 5e-4
    decay_all: bool | None = None
    """Decay norms, biases and embeddings too; by default SGD does and AdamW does not."""
    clip_norm: Positive | None = None
    """Largest norm of a block's gradient; longer ones are scaled down."""
    blocks: dict[int, BlockOverride] = {}
    """Overrides by block index, such as ``blocks.0.lr = 0.05``."""

    @pydantic.model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov needs optimizer.momentum above 0")
        return self


class ScheduleConfig(_Section):
    """How the learning rate changes from step to step; a function of the step alone."""

    name: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: NonNegative = 0.0
    """Epochs (or parts of one) in which the learning rate rises from zero on a line."""
    final_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Learning rate at the end as a share of the highest; cosine only."""

    @property
    def knows_end(self) -> bool:
        """Whether the learning rate of a step depends on how many follow."""
        return self.name == "cosine"


class TrainConfig(_Section):
    """How long and how training goes."""

    epochs: Count = 10
    max_steps: Count | None = None
    """Stop after so many training batches, whatever ``epochs`` says."""
    seed: Number = 0
    threads_per_stage: Count = 1
    """Threads of one process; part of the result, since sums are ordered by it."""
    precision: Literal["float32", "bf16"] = "float32"
    """Type of the forward's matrix products; parameters stay float32."""
    compile: Literal[False] = False
    accumulate: Annotated[int, Field(ge=1, le=1024)] = 1
    """A batch travels as so many messages, and a block updates after the last of them: less memory
    a stage. Batch norm sees the samples of a message."""
    deterministic: Literal[True] = True
    on_nonfinite: Literal["stop", "skip", "ignore"] = "stop"
    """What to do when a block's loss is not finite: stop the run and name block and step, make no
    update, or nothing."""
    replicas: Literal[1] = 1
    label_smoothing: Share = 0.0
    evaluate_every: Number = 1
    """Evaluate after every so many epochs; 0 only at the end."""


class RuntimeConfig(_Section):
    """Where and how the run is carried out; nothing here changes the result."""

    stages: Count = 1
    """Number of processes; each runs one or more whole blocks."""
    capacity: Annotated[int, Field(ge=1, le=64)] = 4
    """Messages that a channel holds before its sender waits."""
    transport: Literal["auto", "shared"] = "auto"
    devices: str | tuple[str, ...] = "auto"
    """``"auto"``, ``"cpu"``, or one device a stage."""
    stall_timeout_s: Positive = 300.0
    """A worker that makes no progress for so long is reported and the run ends."""
    log_every_steps: Count = 50
    """Training metrics are written after every so many batches."""


class CheckpointConfig(_Section):
    """When the run is saved; step 0 and the end always are."""

    every_steps: Count | None = None
    keep: Count = 2
    """Keep so many of the newest checkpoints, besides step 0."""


class Recipe(_Section):
    """One run, whole: the same recipe gives the same bits on any number of stages."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    split: SplitConfig = SplitConfig()
    method: MethodConfig = MethodConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @pydantic.model_validator(mode="after")
    def _counts_fit(self) -> Self:
        if self.runtime.stages > self.split.blocks:
            raise ValueError(
                f"runtime.stages = {self.runtime.stages}, but there are only "
                f"{self.split.blocks} blocks to place (split.blocks): "
                f"ask for 1 to {self.split.blocks} stages, or for more blocks"
            )
        if self.train.accumulate > self.data.batch_size:
            raise ValueError(
                f"train.accumulate = {self.train.accumulate} parts of data.batch_size = "
                f"{self.data.batch_size} samples: ask for 1 to {self.data.batch_size} parts"
            )
        for index in self.optimizer.blocks:
            if not 0 <= index < self.split.blocks:
                raise ValueError(
                    f"optimizer.blocks.{index}: blocks count from 0 to {self.split.blocks - 1}"
                )
        return self

    def num_steps(self, steps_per_epoch: int) -> int:
        """Training batches of the whole run."""
        num_steps = steps_per_epoch * self.train.epochs
        return min(num_steps, self.train.max_steps or num_steps)

    @property
    def message_size(self) -> int:
        """Most samples of a training message."""
        return -(-self.data.batch_size // self.train.accumulate)

    def num_parts(self, num_samples: int) -> int:
        """Messages that a training batch travels as; fewer than others where it is short."""
        usual = self.data.batch_size // self.train.accumulate
        return min(self.train.accumulate, -(-num_samples // usual))

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
        tree = {name: without_none(section) for name, section in tree.items()}
        check_plain({k: v for k, v in tree.items() if not isinstance(v, _Section)})
        try:
            return cls.model_validate(tree)
        except pydantic.ValidationError as error:
            raise RecipeError(_explain(error)) from None

    def with_settings(self, settings: Iterable[str]) -> Self:
        """A copy with ``SECTION.KEY=VALUE`` settings applied, as ``--set`` gives them.

        Raises:
            RecipeError: A setting cannot be read, or what comes out is not allowed.
        """
        tree = self.model_dump(mode="json", exclude_unset=True)
        for setting in settings:
            apply_setting(tree, setting)
        return type(self).from_dict(tree)

    def to_toml(self) -> str:
        """The whole recipe, defaults included, as TOML that reads back to an equal recipe."""
        return write_toml(self.model_dump(mode="json", exclude_none=True))


def _explain(error: pydantic.ValidationError) -> str:
    """The first problem in words that name the key, what was found and what is allowed."""
    problem = error.errors()[0]
    whole = [str(part) for part in problem["loc"]]
    # Behind section and key pydantic names the alternative that did not fit.
    place = whole[:2] + [p for p in whole[2:] if not p.startswith(("literal[", "tuple["))]
    key = ".".join(place)
    if problem["type"] == "extra_forbidden":
        return unknown_name("key", key, _sibling_keys(place))
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if problem["type"] == "value_error" else f" (found {shown(problem['input'])})"
    return f"{key}: {message}{found}." if key else f"{message}{found}."


def _sibling_keys(place: list[str]) -> list[str]:
    """Keys that may stand where an unknown one was found."""
    if len(place) == 1:
        return list(Recipe.model_fields)
    if place[:2] == ["optimizer", "blocks"] and len(place) > 2:
        return [".".join([*place[:-1], name]) for name in BlockOverride.model_fields]
    section = Recipe.model_fields[place[0]].annotation
    assert isinstance(section, type)
    assert issubclass(section, _Section)
    return [f"{place[0]}.{name}" for name in section.model_fields]
