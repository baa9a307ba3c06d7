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
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ppll.averages import AVERAGE
from ppll.durable import make_folder, open_plain, write_whole
from ppll.errors import CheckpointError
from ppll.manifest import (
    OPTIMIZER_SUFFIX,
    BlockRecord,
    FileRecord,
    Manifest,
    TensorRecord,
    ValidationRecord,
    read_record,
    shard_names,
)

__all__ = [
    "NonFiniteCheckpoint",
    "TensorReader",
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

_MANIFEST: Final = "manifest.json"
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
            dtype=_dtype_name(tensor), shape=tuple(tensor.shape), persistent=name not in transient
        )
        for name, tensor in sorted(tensors.items())
    }
    digest = hashlib.sha256(content).hexdigest()
    return FileRecord(num_bytes=len(content), sha256=digest, tensors=records)


def commit(
    folder: Path, step: int, num_blocks: int, recipe: Mapping[str, dict[str, Any]]
) -> Manifest:
    """Make a checkpoint count, after every block has written its record.

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
    manifest = Manifest(step=step, num_blocks=num_blocks, recipe=dict(recipe), files=files).sealed()
    write_whole(folder / _MANIFEST, manifest.model_dump_json(indent=1).encode())
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
    return (folder / _MANIFEST).is_file()


def write_validation(folder: Path, step: int, accuracy: float) -> None:
    """Note the validation accuracy of a committed checkpoint beside it.

    Raises:
        OSError: The disk is full or cannot be written.
    """
    record = ValidationRecord(step=step, accuracy=accuracy)
    write_whole(folder / _VALIDATION, record.model_dump_json().encode())


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
    (folder / _MANIFEST).unlink(missing_ok=True)


class TensorReader:
    """Tensors of a checkpoint by name, from files whose digests have been checked.

    Args:
        folder: A committed checkpoint.

    Raises:
        CheckpointError: The manifest cannot be read, or is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_record(folder / _MANIFEST, Manifest)
        if not self.manifest.is_whole:
            raise CheckpointError(
                f"{folder / _MANIFEST} is damaged: its SHA-256 is not the one that it names."
            )

    def check(self) -> None:
        """Read every file, and compare its digest and what is in it.

        Raises:
            CheckpointError: A file is missing, damaged, or holds other tensors.
        """
        for name, record in self.manifest.files.items():
            self._load(name, record)

    def records(self) -> dict[str, TensorRecord]:
        """What there is to read by ``weights``, by name."""
        return {
            tensor: record
            for name, file in self.manifest.files.items()
            if not name.endswith(OPTIMIZER_SUFFIX)
            for tensor, record in file.tensors.items()
        }

    def weights(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Parameters and buffers of the given names, as far as the checkpoint has them.

        Raises:
            CheckpointError: A file is missing or damaged.
        """
        wanted = set(names)
        return self._read(lambda name: name in wanted, optimizer=False)

    def optimizer_state(self, parameters: Iterable[str]) -> dict[str, Tensor]:
        """Optimizer tensors and averages (``PARAMETER.key``) of the given parameters.

        Raises:
            CheckpointError: A file is missing or damaged.
        """
        wanted = set(parameters)
        return self._read(lambda name: name.rpartition(".")[0] in wanted, optimizer=True)

    def all_weights(self) -> dict[str, Tensor]:
        """All parameters and buffers.

        Raises:
            CheckpointError: A file is missing or damaged.
        """
        return self._read(lambda _: True, optimizer=False)

    def averaged_weights(self) -> dict[str, Tensor]:
        """All parameters and buffers as the network is used: averages in the place of parameters
        that have some.

        Raises:
            CheckpointError: A file is missing or damaged.
        """
        averages = self._read(lambda name: name.endswith(AVERAGE), optimizer=True)
        named = {name.removesuffix(AVERAGE): average for name, average in averages.items()}
        return {**self.all_weights(), **named}

    def _read(self, wants: Callable[[str], bool], *, optimizer: bool) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, record in self.manifest.files.items():
            wanted = [t for t in record.tensors if wants(t)]
            if wanted and name.endswith(OPTIMIZER_SUFFIX) is optimizer:
                loaded = self._load(name, record)
                tensors.update({t: loaded[t] for t in wanted})
        return tensors

    def _load(self, name: str, record: FileRecord) -> dict[str, Tensor]:
        content = self._content(name, record)
        try:
            tensors = safetensors.torch.load(content)
        # Beside its own errors come torch's about types and shapes that it does not know.
        except (safetensors.SafetensorError, LookupError, RuntimeError, TypeError) as error:
            raise CheckpointError(f"cannot read {self.folder / name}: {error!r:.200}.") from None
        found = {t: (_dtype_name(v), tuple(v.shape)) for t, v in tensors.items()}
        if found != {t: (r.dtype, r.shape) for t, r in record.tensors.items()}:
            raise CheckpointError(f"{self.folder / name} holds other tensors than its manifest.")
        return tensors

    def _content(self, name: str, record: FileRecord) -> bytes:
        path = self.folder / name
        try:
            with open_plain(path) as file:
                num_bytes = os.fstat(file.fileno()).st_size
                content = file.read() if num_bytes == record.num_bytes else b""
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}.") from None
        if num_bytes != record.num_bytes:
            raise CheckpointError(
                f"{path} is damaged: it has {num_bytes} bytes, not {record.num_bytes}."
            )
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise CheckpointError(f"{path} is damaged: its SHA-256 differs from the manifest's.")
        return content


def tensor_digest(name: str, tensor: Tensor) -> str:
    """One line, ``name dtype shape sha256(bytes)``, for the hash of a whole network."""
    with torch.no_grad():
        content = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    digest = hashlib.sha256(content).hexdigest()
    return f"{name} {_dtype_name(tensor)} {list(tensor.shape)} {digest}"


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
