"""What a checkpoint says of itself: records of tensors, files, blocks and the whole (no torch).

Everything is checked when it is read: a manifest names the files of its blocks and nothing else, so
it cannot make a reader look outside its folder.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import pydantic

from ppll.durable import open_plain
from ppll.errors import CheckpointError, first_problem

__all__ = [
    "MANIFEST_NAME",
    "OPTIMIZER_SUFFIX",
    "BlockRecord",
    "FileRecord",
    "Manifest",
    "NetworkRecord",
    "TensorRecord",
    "ValidationRecord",
    "read_record",
    "shard_names",
]

M = TypeVar("M", bound=pydantic.BaseModel)

MANIFEST_NAME = "manifest.json"
"""What makes a folder a checkpoint."""

OPTIMIZER_SUFFIX = ".optimizer.safetensors"
"""How the names of shards with optimizer state end."""

FileName = Annotated[str, pydantic.Field(pattern=r"^block-\d{2,4}(\.optimizer)?\.safetensors$")]
Count = Annotated[int, pydantic.Field(ge=0, lt=2**63)]


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class TensorRecord(_Record):
    """One tensor of a shard.

    Attributes:
        dtype: Such as ``"float32"``.
        shape: Its shape.
        persistent: Whether it belongs in the network's state dict; some buffers do not.
    """

    dtype: str
    shape: tuple[Count, ...]
    persistent: bool = True


class FileRecord(_Record):
    """One shard: its size, its digest and what is in it."""

    num_bytes: Count
    sha256: str
    tensors: dict[str, TensorRecord]


class BlockRecord(_Record):
    """What one block has written at one step.

    Attributes:
        step: Training batches so far.
        block_index: The block.
        files: Its shards by name.
        nonfinite: A tensor that holds a value that is not finite; there are no files then.
    """

    step: Count
    block_index: Count
    files: dict[FileName, FileRecord]
    nonfinite: str | None = None

    @pydantic.model_validator(mode="after")
    def _files_match_block(self) -> Self:
        expected = shard_names(self.block_index) if self.nonfinite is None else ()
        if set(self.files) != set(expected):
            raise ValueError(f"the files are not those of block {self.block_index}")
        return self


class ValidationRecord(_Record):
    """How good the final output of a checkpoint is on the validation part.

    Attributes:
        step: Training batches so far.
        accuracy: Share of the samples that it gets right, 0 to 1; none where values are predicted.
        loss: Mean loss of a sample where values are predicted; none, too, where it is not finite.
    """

    step: Count
    accuracy: Annotated[float, pydantic.Field(ge=0, le=1)] | None = None
    loss: pydantic.FiniteFloat | None = None

    @classmethod
    def of(cls, step: int, accuracy: float, loss: float) -> Self:
        """The record of an evaluation, whose accuracy is NaN where values are predicted."""
        if not math.isnan(accuracy):
            return cls(step=step, accuracy=accuracy)
        return cls(step=step, loss=loss if math.isfinite(loss) else None)

    @property
    def merit(self) -> tuple[float, float]:
        """The best one has the greatest: most right, or the least loss."""
        return self.accuracy or 0.0, -math.inf if self.loss is None else -self.loss


class NetworkRecord(_Record):
    """What network a checkpoint is of.

    Attributes:
        layers: What every layer is, by its name, in order.
        packages: Versions of those in whose words that is said.
        mean: Of every channel of the images that it was trained on; none for floating point, and
            in older checkpoints.
        std: Standard deviation of every channel, like ``mean``.
    """

    layers: dict[str, str]
    packages: dict[str, str]
    mean: tuple[pydantic.FiniteFloat, ...] | None = None
    std: tuple[pydantic.FiniteFloat, ...] | None = None


class Manifest(_Record):
    """A whole checkpoint: which files hold which tensors of which step.

    Attributes:
        step: Training batches so far.
        num_blocks: Blocks, each with two files.
        recipe: What the blocks were trained by, as far as it changes the result.
        files: Every shard by name.
        network: What the network's layers are; older checkpoints do not say.
        sha256: Of all this, since nothing else tells whether the manifest itself is whole.
    """

    format: Literal[2] = 2
    step: Count
    num_blocks: Annotated[int, pydantic.Field(ge=1)]
    recipe: dict[str, dict[str, Any]]
    files: dict[FileName, FileRecord]
    network: NetworkRecord | None = None
    sha256: str = ""

    @pydantic.model_validator(mode="after")
    def _files_match_blocks(self) -> Self:
        # The blocks are counted first, since a number may be made up.
        if len(self.files) != 2 * self.num_blocks or set(self.files) != {
            name for i in range(self.num_blocks) for name in shard_names(i)
        }:
            raise ValueError(f"the files are not those of {self.num_blocks} blocks")
        return self

    def sealed(self) -> Self:
        """The same with its digest."""
        return self.model_copy(update={"sha256": self._digest()})

    @property
    def is_whole(self) -> bool:
        """Whether it still says what it said when it was sealed."""
        return self.sha256 == self._digest()

    def _digest(self) -> str:
        # Older ones were sealed without a network, or without what normalises its images.
        unsealed: dict[str, Any] = {"sha256": True}
        if self.network is None or self.network.mean is None:
            unsealed["network"] = self.network is None or {"mean": True, "std": True}
        return hashlib.sha256(self.model_dump_json(exclude=unsealed).encode()).hexdigest()


def shard_names(block_index: int) -> tuple[str, str]:
    """The files of a block: weights, and optimizer state."""
    return f"block-{block_index:02d}.safetensors", f"block-{block_index:02d}{OPTIMIZER_SUFFIX}"


def read_record(path: Path, model: type[M]) -> M:
    """Read a record and check all of it.

    Raises:
        CheckpointError: It is missing, or not what it should be.
    """
    try:
        with open_plain(path) as file:
            return model.model_validate_json(file.read())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}.") from None
    except pydantic.ValidationError as error:
        raise CheckpointError(f"cannot read {path}: {first_problem(error)}.") from None
