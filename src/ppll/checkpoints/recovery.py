"""Which checkpoint a run goes on from, and which may go."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ppll.checkpoints.checkpoint import (
    forget_validation,
    is_committed,
    read_validation,
    step_folder,
    uncommit,
)
from ppll.checkpoints.manifest import ValidationRecord
from ppll.checkpoints.reader import TensorReader
from ppll.checkpoints.resume import Tree, same_validation, training_sections
from ppll.data_facts import DataFacts
from ppll.errors import CheckpointError, RunFolderError, UsageError
from ppll.run_folder import RunFolder

__all__ = ["Recovered", "best_validation", "find", "forget_validations", "newest_whole", "prune"]
__all__ += ["remove", "set_aside"]

_log = logging.getLogger(__name__)

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

    def facts(self, folder: RunFolder) -> DataFacts:
        """What the run's network must know of its data, with what normalised the images that this
        checkpoint was trained on; the run may have gone on with others.

        Raises:
            RunFolderError: They cannot be read.
        """
        network, facts = self.reader.manifest.network, folder.read_facts()
        if network is None or network.mean is None:
            return facts
        return replace(facts, mean=network.mean, std=network.std)


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


def best_validation(folder: RunFolder) -> ValidationRecord | None:
    """The committed checkpoint with the best validation accuracy, or loss where values are
    predicted, of equal ones the first; none where none is known.

    After a change of what is validated, only those count that were validated as the run has it now.

    Raises:
        RunFolderError: The run's recipe cannot be read.
    """
    return _best(folder.checkpoints, training_sections(folder.read_recipe()))


def _best(checkpoints: Path, recipe: Tree) -> ValidationRecord | None:
    found = [(folder, read_validation(folder)) for folder in _committed(checkpoints)]
    records = [r for folder, r in found if r and _is_comparable(folder, r, recipe)]
    return max(records, key=lambda record: record.merit, default=None)


def _is_comparable(folder: Path, record: ValidationRecord, recipe: Tree) -> bool:
    by_loss = record.accuracy is None
    try:
        return same_validation(TensorReader(folder).manifest.recipe, recipe, by_loss=by_loss)
    except CheckpointError:
        return True  # That it is damaged is said when it is asked for.


def find(folder: RunFolder, *, best: bool = False, step: int | None = None) -> Recovered:
    """The newest whole checkpoint of a run, or the one that is asked for.

    Args:
        folder: The run.
        best: Whether to take the one with the best validation accuracy.
        step: That after so many training batches.

    Raises:
        UsageError: Both are asked for.
        RunFolderError: There is none, or the run's recipe cannot be read.
        CheckpointError: All are damaged, or the one that is asked for is.
    """
    if best and step is not None:
        raise UsageError(
            f"a checkpoint is the best one or that of a step, found both, the best and step "
            f"{step}: ask for one of them."
        )
    if best:
        return _asked_for(_best_folder(folder))
    if step is not None:
        return _asked_for(_folder_of(folder, step))
    found = newest_whole(folder.checkpoints)
    if found is None:
        raise RunFolderError(f"{folder.path} has no whole checkpoint.")
    return found


def _asked_for(checkpoint: Path) -> Recovered:
    """It and no other: an older one would be taken for it."""
    reader = TensorReader(checkpoint)
    reader.check()
    _check_step(reader)
    return Recovered(reader, ())


def _best_folder(folder: RunFolder) -> Path:
    record = best_validation(folder)
    if record is None:
        raise RunFolderError(
            f"{folder.path} has no checkpoint whose validation accuracy is known, or none by the "
            f"data and the train.ema that the run has now: take the newest one, or train with "
            f'checkpoint.keep = "best".'
        )
    return step_folder(folder.checkpoints, record.step)


def _folder_of(folder: RunFolder, step: int) -> Path:
    found = {_step_of(checkpoint): checkpoint for checkpoint in _committed(folder.checkpoints)}
    if step not in found:
        raise RunFolderError(
            f"{folder.path} has no checkpoint of step {step}: there are "
            f"{', '.join(map(str, found)) or 'none'}. Name one of these; checkpoint.every_steps "
            f"decides when one is taken, checkpoint.keep how many stay."
        )
    return found[step]


def _check_step(reader: TensorReader) -> None:
    if reader.folder != step_folder(reader.folder.parent, reader.manifest.step):
        raise CheckpointError(
            f"{reader.folder} is damaged: its manifest is of step {reader.manifest.step}."
        )


def _folders(checkpoints: Path) -> Iterator[Path]:
    """All folders of checkpoints, the oldest first."""
    found = [f for f in checkpoints.glob("step-*") if _NAME.fullmatch(f.name) and f.is_dir()]
    yield from sorted(found, key=_step_of)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _committed(checkpoints: Path) -> list[Path]:
    return [folder for folder in _folders(checkpoints) if is_committed(folder)]


def forget_validations(checkpoints: Path) -> None:
    """Take away what is known of validation, where other samples are validated from now on."""
    for folder in _folders(checkpoints):
        forget_validation(folder)


def set_aside(checkpoints: Path, step: int) -> None:
    """Clear the way for a run that goes on from ``step``.

    What is unfinished, or was being removed, goes. What is newer is damaged and kept under another
    name.
    """
    for folder in list(_folders(checkpoints)):
        if not is_committed(folder):
            remove(folder)
        elif _step_of(folder) > step:
            aside = folder.with_name(folder.name + _DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)


def remove(folder: Path) -> None:
    """Remove a checkpoint, or what is left of one; what cannot be is logged and costs no run.

    The manifest goes first, so that what is left half-way is no checkpoint.

    Raises:
        OSError: It is one still.
    """
    if folder.is_symlink():
        folder.unlink()  # What it leads to is not the run's.
        return
    uncommit(folder)
    try:
        shutil.rmtree(folder)
    except OSError as error:
        _log.warning("cannot remove %s, which is no checkpoint any more: %s", folder, error)


def prune(checkpoints: Path, keep: int, *, best_of: Tree | None = None) -> None:
    """Remove all but step 0 and the ``keep`` newest committed checkpoints.

    Args:
        checkpoints: The run's folder of checkpoints.
        keep: How many of the newest stay.
        best_of: Recipe of the run, as a manifest has it, where the best checkpoint stays, too.
    """
    best = None if best_of is None else _best(checkpoints, best_of)
    kept = {step_folder(checkpoints, step) for step in (0, best.step if best else 0)}
    for folder in _committed(checkpoints)[:-keep]:
        if folder not in kept:
            remove(folder)
