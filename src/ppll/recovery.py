"""Which checkpoint a run goes on from, and which may go."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ppll.checkpoint import (
    TensorReader,
    is_committed,
    read_validation,
    step_folder,
    uncommit,
)
from ppll.errors import CheckpointError, RunFolderError
from ppll.manifest import ValidationRecord

__all__ = ["Recovered", "best_validation", "find", "newest_whole", "prune", "set_aside"]

_DAMAGED = ".damaged"
_NAME = re.compile("step-[0-9]+")


@dataclass(frozen=True)
class Recovered:
    """A checkpoint whose every file is as its manifest says.

    Attributes:
        reader: Its tensors.
        passed_over: Why newer ones are not it, a line each.
    """

    reader: TensorReader
    passed_over: tuple[str, ...]

    @property
    def step(self) -> int:
        """Training batches so far."""
        return self.reader.manifest.step


def newest_whole(checkpoints: Path) -> Recovered | None:
    """Read committed checkpoints, the newest first, until one is whole; none where none is there.

    Raises:
        CheckpointError: There are some, and all are damaged.
    """
    passed_over: list[str] = []
    is_damaged = False
    for folder in reversed(list(_folders(checkpoints))):
        if not is_committed(folder):
            passed_over.append(f"{folder} has no manifest: it was not finished.")
            continue
        try:
            reader = TensorReader(folder)
            reader.check()
            _check_step(reader)
        except CheckpointError as error:
            is_damaged = True
            passed_over.append(str(error))
        else:
            return Recovered(reader, tuple(passed_over))
    if is_damaged:
        raise CheckpointError(
            "no checkpoint is whole:\n" + "\n".join(passed_over) + "\nPut the files back from a "
            "copy, or start again with another --out."
        )
    return None


def best_validation(checkpoints: Path) -> ValidationRecord | None:
    """The committed checkpoint with the best validation accuracy, of equal ones the first; none
    where none is known."""
    records = [record for f in _committed(checkpoints) if (record := read_validation(f))]
    return max(records, key=lambda record: record.accuracy, default=None)


def find(checkpoints: Path, *, best: bool = False) -> Recovered:
    """The newest whole checkpoint, or the one with the best validation accuracy.

    Raises:
        RunFolderError: There is none.
        CheckpointError: All are damaged, or the best one is.
    """
    if not best:
        found = newest_whole(checkpoints)
        if found is None:
            raise RunFolderError(f"{checkpoints.parent} has no whole checkpoint.")
        return found
    record = best_validation(checkpoints)
    if record is None:
        raise RunFolderError(
            f"{checkpoints.parent} has no checkpoint whose validation accuracy is known: take the "
            f'newest one, or train with checkpoint.keep = "best".'
        )
    reader = TensorReader(step_folder(checkpoints, record.step))
    reader.check()
    _check_step(reader)
    return Recovered(reader, ())


def _check_step(reader: TensorReader) -> None:
    if reader.folder != step_folder(reader.folder.parent, reader.manifest.step):
        raise CheckpointError(
            f"{reader.folder} is damaged: its manifest is of step {reader.manifest.step}."
        )


def _folders(checkpoints: Path) -> Iterator[Path]:
    """All folders of checkpoints, the oldest first."""
    found = [f for f in checkpoints.glob("step-*") if _NAME.fullmatch(f.name) and f.is_dir()]
    yield from sorted(found, key=lambda f: int(f.name.removeprefix("step-")))


def _committed(checkpoints: Path) -> list[Path]:
    return [folder for folder in _folders(checkpoints) if is_committed(folder)]


def set_aside(checkpoints: Path, step: int) -> None:
    """Clear the way for a run that goes on from ``step``.

    What is newer is unfinished and removed, or damaged and kept under another name.
    """
    for folder in list(_folders(checkpoints)):
        if int(folder.name.removeprefix("step-")) <= step:
            continue
        if is_committed(folder):
            aside = folder.with_name(folder.name + _DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        else:
            _remove(folder)


def _remove(folder: Path) -> None:
    """The manifest goes first, so that what is left half-way is no checkpoint."""
    if folder.is_symlink():
        folder.unlink()  # What it leads to is not the run's.
    else:
        uncommit(folder)
        shutil.rmtree(folder)


def prune(checkpoints: Path, keep: int, *, keeps_best: bool = False) -> None:
    """Remove all but step 0 and the ``keep`` newest committed checkpoints, and perhaps the best."""
    best = best_validation(checkpoints) if keeps_best else None
    kept = {step_folder(checkpoints, step) for step in (0, best.step if best else 0)}
    for folder in _committed(checkpoints)[:-keep]:
        if folder not in kept:
            _remove(folder)
