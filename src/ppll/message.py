"""What travels from stage to stage.

Everything travels in one queue: training batches, evaluation batches, checkpoint marks, ends of
epochs and the stop are messages of one sequence, so every block sees each of them after exactly
the same batches and nothing ever has to drain.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

import torch
from torch import Tensor

__all__ = [
    "ALIGNMENT",
    "BESIDE",
    "DEVICE_ALIGNMENT",
    "FEATURES",
    "MIX",
    "NOTHING_SAVED",
    "OTHER_TARGETS",
    "PREVIOUS",
    "TARGETS",
    "Kind",
    "Message",
    "canonical",
    "dense_copy",
    "is_dense",
]

FEATURES: Final = "features"
BESIDE: Final = "beside"
"""First part of the names ``beside.0``, ``beside.1``, ... of what else a layer hands on (N, ...),
where that is more than one tensor."""
TARGETS: Final = "targets"
OTHER_TARGETS: Final = "other_targets"
"""Classes (N) of what the samples are mixed with; there only where they are."""
MIX: Final = "mix"
"""Share (N) of its own class in every mixed sample, float32, 0 to 1."""
PREVIOUS: Final = "previous"
"""Input of the block before (N, ...); there only where the method carries it."""
NOTHING_SAVED: Final = -1

ALIGNMENT: Final = 64
"""Bytes; linear and attention kernels give other bits on addresses that are less aligned."""
DEVICE_ALIGNMENT: Final = 256
"""The same for what lies in a GPU's memory, where loads are wider."""


class Kind(enum.IntEnum):
    """What a message asks of a block."""

    TRAIN = 1
    """Send the features on, then learn from the batch."""
    EVALUATION_BEGIN = 2
    """Get ready to evaluate the samples that ``split`` names, with averages where there are."""
    EVALUATE = 3
    """Send the features on and count what the block's exit gets right; learn nothing."""
    EVALUATION_END = 4
    """Report what was counted since the last end; ``split`` says on which samples."""
    EPOCH_END = 5
    """All batches of an epoch have passed."""
    CHECKPOINT = 6
    """Save yourself as you are now, after ``step`` training batches."""
    STOP = 7
    """Nothing follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message and the tensors that travel in it.

    Attributes:
        kind: What it asks of a block.
        sequence: Position among all messages of the run, from 0; a gap is an error.
        step: Training batches up to and including this message.
        epoch: Epoch of the batch, from 0.
        split: The samples of an evaluation, such as ``"test"``; empty otherwise.
        part: Position of the message among those that a training batch, or the samples of an
            evaluation, travel as, from 0. Unlike ``sequence`` it is the same after a resume.
        num_parts: Messages that the batch travels as; a block updates after the last. Of an
            evaluation, those so far.
        share: Share of the batch's samples that is in this message.
        saved_step: Newest checkpoint that the sender and all before it have on disk;
            ``NOTHING_SAVED`` where there is none.
        tensors: By field name: ``features`` (N, ...), ``targets`` (N) or (N, T), what a layer
            hands on beside its main tensor, and what the method adds.
    """

    kind: Kind
    sequence: int
    step: int
    epoch: int = 0
    split: str = ""
    part: int = 0
    num_parts: int = 1
    share: float = 1.0
    saved_step: int = NOTHING_SAVED
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def ends_batch(self) -> bool:
        """Whether it is the last of its batch, so that a block updates after it."""
        return self.part == self.num_parts - 1

    @property
    def features(self) -> Tensor:
        """What the previous block made of the batch: (N, ...)."""
        return self.tensors[FEATURES]

    @property
    def targets(self) -> Tensor:
        """What is to be predicted: (N) class indices, or (N, T) of tokens."""
        return self.tensors[TARGETS]

    def with_tensors(self, **tensors: Tensor) -> Self:
        """A copy in which ``tensors`` take the place of the fields of the same name."""
        return dataclasses.replace(self, tensors={**self.tensors, **tensors})

    def without(self, names: Collection[str]) -> Self:
        """A copy without some fields; itself where none are named."""
        if not names:
            return self
        kept = {name: tensor for name, tensor in self.tensors.items() if name not in names}
        return dataclasses.replace(self, tensors=kept)

    def on(self, device: torch.device, *, waits: bool = True) -> Self:
        """The message with its tensors on a device; itself where they are there.

        Without ``waits`` it may still be on its way when this returns: only for ``pinned`` tensors
        on their way to a GPU, which torch keeps until then.
        """
        if all(tensor.device == device for tensor in self.tensors.values()):
            return self
        tensors = {n: t.to(device, non_blocking=not waits) for n, t in self.tensors.items()}
        return dataclasses.replace(self, tensors=tensors)

    def pinned(self) -> Self:
        """The message with its tensors in memory of the host that a GPU reads by itself."""
        tensors = {name: tensor.pin_memory() for name, tensor in self.tensors.items()}
        return dataclasses.replace(self, tensors=tensors)

    def with_saved_step(self, saved_step: int) -> Self:
        """A copy that carries another ``saved_step``."""
        return dataclasses.replace(self, saved_step=saved_step)


def canonical(tensor: Tensor) -> Tensor:
    """The tensor as every placement hands it on: detached from any gap and aligned.

    A tensor that is dense and starts on an ``ALIGNMENT`` boundary (on a GPU a
    ``DEVICE_ALIGNMENT`` boundary) is returned as it is, otherwise a copy.
    """
    boundary = DEVICE_ALIGNMENT if tensor.is_cuda else ALIGNMENT
    if is_dense(tensor) and tensor.data_ptr() % boundary == 0:
        return tensor
    return dense_copy(tensor)


def dense_copy(tensor: Tensor) -> Tensor:
    """A copy without gaps; torch's allocators align it."""
    kept = torch.preserve_format if is_dense(tensor) else torch.contiguous_format
    return tensor.clone(memory_format=kept)


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gap or overlap, in any order of dimensions.

    Memory formats such as channels_last are dense and kept on the way.
    """
    # The first test is ten times as fast and nearly always enough.
    return tensor.is_contiguous() or bool(torch.ops.aten.is_non_overlapping_and_dense(tensor))
