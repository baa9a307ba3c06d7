"""The sections of a recipe: what each key is, may be, and is by default (no torch)."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

import pydantic
from pydantic import Field

from ppll.errors import unknown_name
from ppll.own_class import is_own_class
from ppll.recipe_text import shown
from ppll.section import (
    Count,
    NamedSection,
    NonNegative,
    Number,
    Positive,
    Section,
    Share,
    UsablePath,
)

__all__ = ["CheckpointConfig", "DataConfig", "DataHome", "LossConfig", "MethodConfig"]
__all__ += ["MODEL_LIBRARIES", "SHELF_LOSSES", "ModelConfig", "RuntimeConfig", "SplitConfig"]
__all__ += ["TrackConfig", "TrainConfig"]

DataHome = Literal["auto", "host", "device"]
MODEL_LIBRARIES: Final = ("timm", "torchvision", "transformers")
"""Whose models a recipe may name, with a colon behind."""
SHELF_LOSSES: Final = ("cross-entropy",)
"""Losses that a recipe may name without a module."""
Replicas = Annotated[int, Field(ge=1, le=32)]


class DataConfig(NamedSection):
    """What is trained on."""

    name: str = "digits"
    """A data set; ``ppll datasets`` lists them. Or one of your own, as ``"module:function"``."""
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
    test_limit: Count | None = None
    """Test only with the first so many test samples."""
    drop_last: bool = False
    """Leave out a last training batch that is not full."""
    crop: Number = 0
    """Pad training images by so many pixels and crop them back at a random place."""
    flip: bool = False
    """Mirror every other training image, at random."""
    randaugment: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Magnitude of the operations of RandAugment, 0 to 10; 0 is off."""
    randaugment_ops: Annotated[int, Field(ge=1, le=10)] = 2
    """Operations of RandAugment that a training image goes through."""
    cutout: Number = 0
    """Side in pixels of a square that is painted over somewhere in every training image."""
    mixup: NonNegative = 0.0
    """Mix every training image with another by a share drawn from Beta(mixup, mixup); 0 is off."""
    cutmix: NonNegative = 0.0
    """Put a box of another image into every training image, of a share drawn from Beta(cutmix,
    cutmix); 0 is off. With mixup, too, an image has one of both."""

    @property
    def is_own(self) -> bool:
        """Whether it is made by a function that is named by its module."""
        return is_own_class(self.name)

    @property
    def mixes(self) -> bool:
        """Whether a training sample is made of two."""
        return self.mixup > 0 or self.cutmix > 0

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


class ModelConfig(NamedSection):
    """What is trained."""

    name: str = "resnet32"
    """A network; ``ppll models`` lists them. Or one of your own, as ``"module:function"``."""
    weights: UsablePath | None = None
    """Start from these values: a run folder, or a file of ``ppll export``."""
    fresh: tuple[str, ...] = ()
    """Layers that begin with first values all the same, such as ``["head"]`` for other classes."""

    @pydantic.model_validator(mode="after")
    def _fresh_beside_weights(self) -> Self:
        if self.fresh and self.weights is None:
            raise ValueError(
                "model.fresh is for what model.weights is not to give: set model.weights, too"
            )
        return self

    @property
    def is_foreign(self) -> bool:
        """Whether it is no network of our shelf, but named with what it is of: a library, or a
        module."""
        return is_own_class(self.name)

    @property
    def is_own(self) -> bool:
        """Whether it is a function or class that is named by its module."""
        return self.is_foreign and self.name.partition(":")[0] not in MODEL_LIBRARIES


class SplitConfig(Section):
    """Where the network is cut. Cuts are the algorithm: no run moves them."""

    blocks: Count = 4
    """Number of blocks (K in papers)."""
    cuts: (
        Literal["even", "balanced", "infopro", "infopro-memory", "contsup"] | tuple[Count, ...]
    ) = "even"
    """``"even"``; those of a paper by name; ``"balanced"``, which ``ppll plan`` writes out; or the
    first layer of every block but the first, ascending."""
    features_dtype: Literal["bf16", "int8"] | None = None
    """In what features cross every cut, on one stage, too; as they are computed without."""
    untie: bool = True
    """Whether an output layer that shares the weight of the input embeddings trains a copy of its
    own; such a model is refused otherwise."""

    @pydantic.model_validator(mode="after")
    def _cuts_match_blocks(self) -> Self:
        if isinstance(self.cuts, str):
            return self
        if list(self.cuts) != sorted(set(self.cuts)):
            raise ValueError(f"split.cuts must ascend, found {list(self.cuts)}")
        if len(self.cuts) != self.blocks - 1:
            raise ValueError(
                f"split.cuts makes {len(self.cuts) + 1} blocks, but split.blocks = {self.blocks}: "
                f"set split.blocks = {len(self.cuts) + 1}, or give {self.blocks - 1} cut(s)"
            )
        return self


class MethodConfig(NamedSection):
    """How a block learns."""

    name: str = "dgl"
    """A method; ``ppll methods`` lists them."""
    auxiliary: str | None = None
    """An auxiliary network of the shelf other than the method's own, where the method has this
    option."""
    lag: Annotated[int, Field(ge=1, le=63)] | None = None
    """Training messages by which parameters of a later block are behind, where the method has this
    option."""


class LossConfig(Section):
    """What predictions learn from, the network's own and those of auxiliary networks."""

    name: str = "cross-entropy"
    """``"cross-entropy"``, or any module of torch's kind by its own, ``"module:Class"``, that takes
    logits and targets and returns their mean loss."""
    options: dict[str, Any] = Field(default={})
    """What ``__init__`` of a ``"module:Class"`` takes, such as ``options.weight``."""

    @pydantic.field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in SHELF_LOSSES and not is_own_class(name):
            raise ValueError(
                unknown_name(
                    "loss", name, [*SHELF_LOSSES, "module:Class (such as torch.nn:MSELoss)"]
                ).rstrip(".")
            )
        return name

    @pydantic.model_validator(mode="after")
    def _options_are_of_a_class(self) -> Self:
        if self.options and not self.is_own:
            raise ValueError(
                f'loss.options are for a "module:Class", found loss.name = {self.name!r}: leave '
                f"them out"
            )
        return self

    @property
    def is_own(self) -> bool:
        """Whether it is a class that is named by its module."""
        return is_own_class(self.name)


class TrainConfig(Section):
    """How long and how training goes."""

    epochs: Count = 10
    """Times that the training set is gone through."""
    max_steps: Count | None = None
    """Stop after so many training batches, whatever ``epochs`` says."""
    seed: Number = 0
    """Of first values, order, augmentation and dropout."""
    threads_per_stage: Count = 1
    """Threads of one process; part of the result, since sums are ordered by it."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Type of the forward's matrix products; parameters stay float32. With ``"fp16"`` every block
    scales its loss, and leaves out the batches in which its gradients overflow."""
    tf32: bool = False
    """Whether float32 matrix products and convolutions round their inputs to TF32, where a GPU
    can."""
    channels_last: bool = False
    """Whether maps lie in memory with the channels of a pixel side by side, as convolutions of
    many kernels are faster."""
    compile: bool = False
    """Whether each block's forward and local loss are compiled; evaluation never is."""
    activation_checkpointing: bool = False
    """Whether a block keeps only the inputs of its layers for its backward pass and computes what
    lies between again: less memory, a forward more. The bits are the same."""
    cuda_graphs: bool = False
    """Whether each block's forward and learning step are recorded as CUDA graphs and replayed: no
    Python and one launch a step. Updates are fused; the bits are those of ``optimizer.fused``."""
    accumulate: Annotated[int, Field(ge=1, le=1024)] = 1
    """A batch travels as so many messages, and a block updates after the last of them: less memory
    a stage. Batch norm sees the samples of a message."""
    deterministic: Literal[True] = True
    """Only algorithms that give the same bits again; there is no other way yet."""
    on_nonfinite: Literal["stop", "skip", "ignore"] = "stop"
    """What to do when a block's loss is not finite: stop the run and name block and step, make no
    update, or nothing."""
    replicas: Replicas | Annotated[tuple[Replicas, ...], Field(min_length=1)] = 1
    """Copies of the whole pipeline, or one number a block: so many processes share each batch of a
    block, each learns from its shard, and they update by the mean gradient of the batch. Batch norm
    sees the samples of a shard. Of the numbers of two blocks that follow each other, one has to
    divide the other, and each the largest."""
    label_smoothing: Share = 0.0
    """Share of the target that is spread over all classes; of cross-entropy only."""
    ema: Share = 0.0
    """Keep exponential moving averages of all parameters with this decay, such as 0.999, and
    evaluate and use the network with them; 0 is off."""
    evaluate_every: Number = 1
    """Evaluate after every so many epochs; 0 only at the end."""

    @pydantic.field_validator("replicas")
    @classmethod
    def _one_for_all(cls, replicas: int | tuple[int, ...]) -> int | tuple[int, ...]:
        """Equal numbers for every block are one for all."""
        if isinstance(replicas, tuple) and len(set(replicas)) == 1:
            return replicas[0]
        return replicas


class RuntimeConfig(Section):
    """Where and how the run is carried out; nothing here changes the result."""

    stages: Count = 1
    """Number of stages, each of one or more whole blocks: a process each, or one a replica."""
    capacity: Annotated[int, Field(ge=1, le=64)] = 4
    """Messages that a channel holds before its sender waits."""
    transport: Literal["auto", "shared"] = "auto"
    """``"auto"``: features pass from GPU to GPU, between hosts by NCCL, else through the host's
    memory; ``"shared"``: through the host's also between GPUs, between hosts by gloo."""
    devices: str | tuple[str, ...] = "auto"
    """``"auto"``: GPUs where there are some; ``"cpu"``; ``"cuda"`` or ``"cuda:0"``; or one device a
    stage, replica after replica."""
    concurrent_blocks: bool = False
    """Whether the blocks of a stage compute on its GPU at the same time; needs train.cuda_graphs.
    """
    data: DataHome = "auto"
    """Where the data set lies and batches are made: ``"host"``, ahead of time, or ``"device"``,
    which is the first stage's. ``"auto"``: on a GPU that has the room, else on the host."""
    sharding: Literal["none", "fsdp"] = "none"
    """``"fsdp"``: the replicas of a stage (train.replicas) share its parameters, gradients and
    optimizer state, so that each needs less memory; only on processors. The bits are the same."""
    stall_timeout_s: Positive = 300.0
    """A worker that makes no progress for so long is reported and the run ends."""
    log_every_steps: Count = 50
    """Training metrics are written after every so many batches."""


class CheckpointConfig(Section):
    """When the run is saved; step 0 and the end always are."""

    every_steps: Count | None = None
    """Also after every so many training batches."""
    keep: int | str = 2
    """Keep so many of the newest checkpoints, besides step 0. With ``"best"`` a checkpoint is taken
    at every evaluation, and the two newest stay and the one with the best validation accuracy, or
    loss where values are predicted."""

    @pydantic.field_validator("keep")
    @classmethod
    def _keep_is_number_or_best(cls, keep: int | str) -> int | str:
        if keep != "best" and not (isinstance(keep, int) and 1 <= keep < 2**63):
            raise ValueError(
                f'must be a number of checkpoints, 1 or more, or "best", found {shown(keep)}'
            )
        return keep

    @property
    def keeps_best(self) -> bool:
        """Whether the one with the best validation accuracy stays."""
        return self.keep == "best"

    @property
    def num_newest(self) -> int:
        """How many of the newest stay."""
        return self.keep if isinstance(self.keep, int) else 2


class TrackConfig(Section):
    """What is taken down of a run for people to look at; nothing here changes the result."""

    trace_steps: Annotated[int, Field(ge=0, le=10_000)] = 100
    """Batches at the start and at the end of which every rank's spans are recorded; 0 is off."""
    tensorboard: bool = False
    """Also write the metrics as event files for TensorBoard, into the run folder."""
    batch_ends: bool = False
    """Also write when each rank's device had done each batch, into ``traces/ends-N.json``: seconds
    of the machine's monotonic clock."""
