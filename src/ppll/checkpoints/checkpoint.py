"""Checkpoints: shards a block writes for itself, and a manifest that makes them count.

A checkpoint is a folder ``step-XXXXXXXX``. Every block writes two shards, ``block-NN.safetensors``
(parameters and buffers under the names of the un-split network, the auxiliary network's under
``auxiliary.``) and ``block-NN.optimizer.safetensors`` (optimizer state and averages), and then its
record ``block-NN.json``. ``manifest.json`` is written last, by atomic rename; a folder without it
is no checkpoint. Since tensors are found by name, a checkpoint loads under any placement.

Nothing is ever unpickled, and a file whose digest differs from the manifest's is never loaded. A
block with a value that is not finite writes a record that says so, and no checkpoint comes of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor

from ppll.checkpoints.manifest import (
    MANIFEST_NAME,
    BlockRecord,
    FileRecord,
    Manifest,
    NetworkRecord,
    TensorRecord,
    ValidationRecord,
    read_record,
    shard_names,
)
from ppll.checkpoints.reader import dtype_name
from ppll.durable import make_folder, write_whole
from ppll.errors import CheckpointError

__all__ = [
    "NonFiniteCheckpoint",
    "check_finite",
    "commit",
    "forget_validation",
    "is_committed",
    "read_validation",
    "step_folder",
    "tensor_digest",
    "uncommit",
    "write_block",
    "write_validation",
]

_VALIDATION: Final = "validation.json"


class NonFiniteCheckpoint(CheckpointError):
    """A block holds a value that is not finite, so it cannot be saved."""


def step_folder(checkpoints: Path, step: int) -> Path:
    """The folder of the checkpoint after ``step`` training batches."""
    return checkpoints / f"step-{step:08d}"


def write_block(
    folder: Path,
    step: int,
    block_index: int,
    tensors: Mapping[str, Tensor],
    optimizer_tensors: Mapping[str, Tensor],
    transient: Collection[str] = (),
) -> BlockRecord:
    """Write one block's shards and its record, each whole or not at all.

    Args:
        folder: The checkpoint's folder; made where it does not exist.
        step: Training batches so far.
        block_index: The block.
        tensors: Parameters and buffers by name, not changed by anybody meanwhile.
        optimizer_tensors: Optimizer state and averages by name.
        transient: Buffers among ``tensors`` that are not part of the network's state dict.

    Raises:
        OSError: The disk is full or cannot be written.
    """
    make_folder(folder)
    # A mask may well be infinite; it is no part of what is learned.
    learned = {name: tensor for name, tensor in tensors.items() if name not in transient}
    nonfinite = _first_nonfinite({**learned, **optimizer_tensors})
    files = {}
    if nonfinite is None:
        shards = zip(shard_names(block_index), (tensors, optimizer_tensors), strict=True)
        files = {name: _write_shard(folder / name, shard, transient) for name, shard in shards}
    record = BlockRecord(step=step, block_index=block_index, files=files, nonfinite=nonfinite)
    write_whole(_record_path(folder, block_index), record.model_dump_json().encode())
    return record


def _record_path(folder: Path, block_index: int) -> Path:
    return folder / f"block-{block_index:02d}.json"


def _first_nonfinite(tensors: Mapping[str, Tensor]) -> str | None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name
    return None


def _write_shard(
    path: Path, tensors: Mapping[str, Tensor], transient: Collection[str]
) -> FileRecord:
    # safetensors refuses tensors that share memory and writes contiguous ones only.
    content = safetensors.torch.save({k: t.contiguous() for k, t in tensors.items()})
    write_whole(path, content)
    records = {
        name: TensorRecord(
            dtype=dtype_name(tensor), shape=tuple(tensor.shape), persistent=name not in transient
        )
        for name, tensor in sorted(tensors.items())
    }
    digest = hashlib.sha256(content).hexdigest()
    return FileRecord(num_bytes=len(content), sha256=digest, tensors=records)


def commit(
    folder: Path,
    step: int,
    num_blocks: int,
    recipe: Mapping[str, dict[str, Any]],
    network: NetworkRecord | None = None,
) -> Manifest:
    """Make a checkpoint count, after every block has written its record.

    Args:
        folder: The checkpoint's folder.
        step: Training batches so far.
        num_blocks: Blocks of the network.
        recipe: What they were trained by.
        network: What the network is; none for a double that nobody goes on with.

    Raises:
        NonFiniteCheckpoint: A block holds a value that is not finite.
        CheckpointError: A block's record is missing or of another step.
        OSError: The disk is full or cannot be written.
    """
    files: dict[str, FileRecord] = {}
    for index in range(num_blocks):
        record = read_record(_record_path(folder, index), BlockRecord)
        if (record.step, record.block_index) != (step, index):
            raise CheckpointError(
                f"{folder} holds block {record.block_index} of step {record.step} where block "
                f"{index} of step {step} should be."
            )
        check_finite(record)
        files.update(record.files)
    said = {"step": step, "num_blocks": num_blocks, "recipe": dict(recipe), "files": files}
    manifest = Manifest.model_validate({**said, "network": network}).sealed()
    write_whole(folder / MANIFEST_NAME, manifest.model_dump_json(indent=1).encode())
    return manifest


def check_finite(record: BlockRecord) -> None:
    """Refuse what a block could not save.

    Raises:
        NonFiniteCheckpoint: It holds a value that is not finite.
    """
    if record.nonfinite is not None:
        raise NonFiniteCheckpoint(
            f"{record.nonfinite} of block {record.block_index} holds a value that is not finite "
            f"after step {record.step}, so no checkpoint is made of it. Go on from the one before "
            f"with a lower optimizer.lr, a longer schedule.warmup_epochs or optimizer.clip_norm."
        )


def is_committed(folder: Path) -> bool:
    """Whether a checkpoint's folder has a manifest."""
    return (folder / MANIFEST_NAME).is_file()


def write_validation(folder: Path, record: ValidationRecord) -> None:
    """Note how good a committed checkpoint is on the validation part, beside it.

    Raises:
        OSError: The disk is full or cannot be written.
    """
    write_whole(folder / _VALIDATION, record.model_dump_json(exclude_none=True).encode())


def read_validation(folder: Path) -> ValidationRecord | None:
    """What ``write_validation`` noted of a checkpoint; none where that is not there or damaged."""
    with suppress(CheckpointError):
        record = read_record(folder / _VALIDATION, ValidationRecord)
        return record if folder.name == step_folder(folder.parent, record.step).name else None
    return None


def forget_validation(folder: Path) -> None:
    """Take away what ``write_validation`` noted, since it is of other samples."""
    (folder / _VALIDATION).unlink(missing_ok=True)


def uncommit(folder: Path) -> None:
    """Make a checkpoint one no longer, before its files are removed or moved."""
    (folder / MANIFEST_NAME).unlink(missing_ok=True)


def tensor_digest(name: str, tensor: Tensor) -> str:
    """One line, ``name dtype shape sha256(bytes)``, for the hash of a whole network."""
    with torch.no_grad():
        content = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    digest = hashlib.sha256(content).hexdigest()
    return f"{name} {dtype_name(tensor)} {list(tensor.shape)} {digest}"
