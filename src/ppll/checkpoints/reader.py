"""What a checkpoint holds, read back: tensors by name, from files that are as its manifest says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from ppll.blocks.averages import AVERAGE
from ppll.checkpoints.manifest import (
    MANIFEST_NAME,
    OPTIMIZER_SUFFIX,
    FileRecord,
    Manifest,
    TensorRecord,
    read_record,
)
from ppll.durable import open_plain
from ppll.errors import CheckpointError

__all__ = ["TensorReader", "dtype_name"]


class TensorReader:
    """Tensors of a checkpoint by name, from files whose digests have been checked.

    Args:
        folder: A committed checkpoint.

    Raises:
        CheckpointError: The manifest cannot be read, or is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_record(folder / MANIFEST_NAME, Manifest)
        if not self.manifest.is_whole:
            raise CheckpointError(
                f"{folder / MANIFEST_NAME} is damaged: its SHA-256 is not the one that it names."
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
        found = {t: (dtype_name(v), tuple(v.shape)) for t, v in tensors.items()}
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


def dtype_name(tensor: Tensor) -> str:
    """A tensor's type as a record has it."""
    return str(tensor.dtype).removeprefix("torch.")
