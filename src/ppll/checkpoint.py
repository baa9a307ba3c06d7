"""Checkpoints: shards a block writes for itself, and a manifest that makes them count.

A checkpoint is a folder ``step-XXXXXXXX``. Every block writes two shards, ``block-NN.safetensors``
(parameters and buffers under the names of the un-split network, the auxiliary network's under
``auxiliary.``) and ``block-NN.optimizer.safetensors``, and then its record ``block-NN.json``.
``manifest.json`` is written last, by atomic rename; a folder without it is no checkpoint. Since
tensors are found by name, a checkpoint loads under any placement.

Nothing is ever unpickled, and a file whose digest differs from the manifest's is never loaded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import pydantic
import safetensors.torch
import torch
from torch import Tensor

from ppll.errors import CheckpointError

__all__ = [
    "BlockRecord",
    "FileRecord",
    "Manifest",
    "TensorReader",
    "commit",
    "newest_checkpoint",
    "prune",
    "step_folder",
    "tensor_digest",
    "write_block",
]

M = TypeVar("M", bound=pydantic.BaseModel)

_MANIFEST = "manifest.json"
_FORMAT = 1

FileName = Annotated[str, pydantic.Field(pattern=r"^block-\d{2,4}(\.optimizer)?\.safetensors$")]


class FileRecord(pydantic.BaseModel):
    """One shard: its size, its digest and what is in it."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    num_bytes: int
    sha256: str
    tensors: tuple[str, ...]


class BlockRecord(pydantic.BaseModel):
    """What one block has written at one step."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    step: int
    block_index: int
    files: dict[FileName, FileRecord]


class Manifest(pydantic.BaseModel):
    """A whole checkpoint: which files hold which tensors of which step."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    format: int = _FORMAT
    step: int
    num_blocks: int
    files: dict[FileName, FileRecord]


def step_folder(checkpoints: Path, step: int) -> Path:
    """The folder of the checkpoint after ``step`` training batches."""
    return checkpoints / f"step-{step:08d}"


def write_block(
    folder: Path,
    step: int,
    block_index: int,
    tensors: Mapping[str, Tensor],
    optimizer_tensors: Mapping[str, Tensor],
) -> None:
    """Write one block's shards and its record, each whole or not at all.

    Args:
        folder: The checkpoint's folder; made where it does not exist.
        step: Training batches so far.
        block_index: The block.
        tensors: Parameters and buffers by name, not changed by anybody meanwhile.
        optimizer_tensors: Optimizer state by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"block-{block_index:02d}"
    shards = {f"{stem}.safetensors": tensors, f"{stem}.optimizer.safetensors": optimizer_tensors}
    files = {name: _write_shard(folder / name, shard) for name, shard in shards.items()}
    record = BlockRecord(step=step, block_index=block_index, files=files)
    _write_whole(folder / f"{stem}.json", record.model_dump_json().encode())


def _write_shard(path: Path, tensors: Mapping[str, Tensor]) -> FileRecord:
    # safetensors refuses tensors that share memory and writes contiguous ones only.
    content = safetensors.torch.save({k: t.contiguous() for k, t in tensors.items()})
    _write_whole(path, content)
    digest = hashlib.sha256(content).hexdigest()
    return FileRecord(num_bytes=len(content), sha256=digest, tensors=tuple(sorted(tensors)))


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit(folder: Path, step: int, num_blocks: int) -> None:
    """Make a checkpoint count, after every block has written its record.

    Raises:
        CheckpointError: A block's record is missing or of another step.
    """
    files: dict[str, FileRecord] = {}
    for index in range(num_blocks):
        record = _read_model(folder / f"block-{index:02d}.json", BlockRecord)
        if (record.step, record.block_index) != (step, index):
            raise CheckpointError(
                f"{folder} holds block {record.block_index} of step {record.step} where block "
                f"{index} of step {step} should be."
            )
        files.update(record.files)
    manifest = Manifest(step=step, num_blocks=num_blocks, files=files)
    _write_whole(folder / _MANIFEST, manifest.model_dump_json(indent=1).encode())


def _read_model(path: Path, model: type[M]) -> M:
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, pydantic.ValidationError) as error:
        raise CheckpointError(f"cannot read {path}: {error}.") from None


def newest_checkpoint(checkpoints: Path) -> Path | None:
    """The newest committed checkpoint's folder, or none."""
    folders = sorted(checkpoints.glob("step-*"), reverse=True)
    return next((f for f in folders if (f / _MANIFEST).is_file()), None)


def prune(checkpoints: Path, keep: int) -> None:
    """Remove all but step 0 and the ``keep`` newest committed checkpoints.

    The manifest goes first, so that what is left half-way is no checkpoint.
    """
    committed = sorted(f for f in checkpoints.glob("step-*") if (f / _MANIFEST).is_file())
    for folder in committed[:-keep]:
        if folder != step_folder(checkpoints, 0):
            (folder / _MANIFEST).unlink()
            shutil.rmtree(folder)


class TensorReader:
    """Tensors of a checkpoint by name, from files whose digests have been checked.

    Args:
        folder: A committed checkpoint.

    Raises:
        CheckpointError: The manifest cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = _read_model(folder / _MANIFEST, Manifest)

    def weights(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Parameters and buffers of the given names, as far as the checkpoint has them.

        Raises:
            CheckpointError: A file is missing or damaged.
        """
        wanted = set(names)
        return self._read(lambda name: name in wanted, optimizer=False)

    def optimizer_state(self, parameters: Iterable[str]) -> dict[str, Tensor]:
        """Optimizer tensors (``PARAMETER.key``) of the given parameters.

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

    def _read(self, wants: Callable[[str], bool], *, optimizer: bool) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, record in self.manifest.files.items():
            wanted = [t for t in record.tensors if wants(t)]
            if wanted and name.endswith(".optimizer.safetensors") is optimizer:
                loaded = self._load(name, record)
                tensors.update({t: loaded[t] for t in wanted})
        return tensors

    def _load(self, name: str, record: FileRecord) -> dict[str, Tensor]:
        path = self.folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error}.") from None
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise CheckpointError(f"{path} is damaged: its SHA-256 differs from the manifest's.")
        return safetensors.torch.load(content)


def tensor_digest(name: str, tensor: Tensor) -> str:
    """One line, ``name dtype shape sha256(bytes)``, for the hash of a whole network."""
    with torch.no_grad():
        content = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{name} {dtype} {list(tensor.shape)} {hashlib.sha256(content).hexdigest()}"
