"""What a run of a study came to, of what lies in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pydantic

from ppll.config import Recipe
from ppll.errors import RunFolderError
from ppll.result import Result, read_result
from ppll.run_folder import RunFolder
from ppll.studies.runs import StudyRun

__all__ = ["Outcome", "exits_path", "is_trained", "read_outcome"]


@dataclass(frozen=True)
class Outcome:
    """What a finished run came to.

    Attributes:
        seed: Which run of its row it is.
        run_folder: Where it lies, seen from the study's folder.
        validation_accuracy: Share of the validation part that the final output gets right; none
            where the recipe keeps no such part.
        test_accuracy: Share of test samples that the final output gets right.
        exit_accuracy: The same for every block's exit, the final output last; none for a block
            that makes no prediction.
        average_accuracy: The same for the mean of the exits' softmax probabilities.
        epoch_seconds: Seconds of training an epoch took; none where that is not known.
        peak_memory_bytes: Most memory of a stage in training; none where that is not known.
        num_stages: Stages; without replicas, the processes that trained it.
        weights_sha256: Of all blocks' parameters and buffers.
    """

    seed: int
    run_folder: str
    validation_accuracy: float | None
    test_accuracy: float
    exit_accuracy: tuple[float | None, ...]
    average_accuracy: float
    epoch_seconds: float | None
    peak_memory_bytes: int | None
    num_stages: int
    weights_sha256: str


class _Exits(pydantic.BaseModel):
    """What a study needs of a run's exits."""

    step: int
    average_accuracy: Annotated[float, pydantic.Field(ge=0, le=1)]


def exits_path(folder: RunFolder) -> Path:
    """What the exits of a run are worth, as ``ppll eval --exits`` has it."""
    return folder.path / "exits.json"


def is_trained(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether a run has been trained to its end, and tested.

    Raises:
        RunFolderError: What it wrote cannot be read.
    """
    if not folder.result.is_file():
        return False
    steps_per_epoch = folder.read_facts().steps_per_epoch
    result = read_result(folder)
    is_through = result.step >= recipe.num_steps(steps_per_epoch)
    return is_through and result.test_accuracy is not None


def read_outcome(run: StudyRun) -> Outcome | None:
    """What a run came to; none where it is not finished, or its exits are to be tested again.

    Raises:
        RunFolderError: What it wrote cannot be read.
    """
    folder = run.folder
    if not is_trained(folder, run.recipe):
        return None
    result, exits = read_result(folder), _read_exits(exits_path(folder))
    if exits is None or exits.step != result.step or result.test_accuracy is None:
        return None
    return Outcome(
        seed=run.seed,
        run_folder=str(Path(*folder.path.parts[-3:])),
        validation_accuracy=result.validation_accuracy,
        test_accuracy=result.test_accuracy,
        exit_accuracy=result.exit_accuracy,
        average_accuracy=exits.average_accuracy,
        epoch_seconds=_epoch_seconds(folder, result),
        peak_memory_bytes=_peak_memory_bytes(result),
        num_stages=result.num_stages,
        weights_sha256=result.weights_sha256,
    )


def _has_trained(result: Result) -> bool:
    """Whether the start that a result's times and bytes are of did: it may only have tested what
    one before it, which was killed meanwhile, had trained."""
    return result.samples_per_second > 0


def _peak_memory_bytes(result: Result) -> int | None:
    return max(result.peak_memory_bytes, default=None) if _has_trained(result) else None


def _epoch_seconds(folder: RunFolder, result: Result) -> float | None:
    """A result's seconds are those of the last start that trained."""
    starts = [start for start in _read_starts(folder) if start < result.step]
    if not starts or not _has_trained(result):
        return None
    epochs = (result.step - starts[-1]) / folder.read_facts().steps_per_epoch
    return result.train_seconds / epochs


def _read_starts(folder: RunFolder) -> list[int]:
    try:
        return folder.read_start_steps()
    except OSError as error:
        raise RunFolderError(f"cannot read {folder.history}: {error.strerror}.") from None


def _read_exits(path: Path) -> _Exits | None:
    """None where they are not known, or damaged."""
    try:
        return _Exits.model_validate_json(path.read_bytes())
    except (OSError, pydantic.ValidationError):
        return None
