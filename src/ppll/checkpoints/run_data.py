"""The arrays that a run was given from Python, kept in its folder for the rank that loads them."""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import suppress

from ppll.checkpoints.recovery import forget_validations
from ppll.data import OWN_DATA, Dataset
from ppll.data.kept import read_kept
from ppll.data_facts import DataFacts
from ppll.errors import DataError, RunFolderError
from ppll.run_folder import RunFolder
from ppll.sections import DataConfig

__all__ = ["keep_data", "kept_data", "was_given"]

_log = logging.getLogger(__name__)


def kept_data(folder: RunFolder, config: DataConfig, allowed: Collection[str]) -> Dataset | None:
    """The arrays that a run was given from Python, unless it may go on with a set that is named.

    Raises:
        DataError: They are damaged, or others, which is not allowed.
    """
    names_another = config.name != OWN_DATA
    if not folder.user_data.exists() or (names_another and {"data", "data.name"} & set(allowed)):
        return None
    if names_another:
        _log.info("the run goes on with the arrays that it was given, not with %s", config.name)
    return read_kept(folder.user_data, None if "data" in allowed else _facts(folder))


def was_given(folder: RunFolder, data: Dataset, facts: DataFacts) -> bool:
    """Whether these arrays, whose facts are given, are those of the run in the folder."""
    before = _facts(folder)
    if before is not None and before.digest is not None:
        return before.digest == facts.digest
    return folder.user_data.exists() and Dataset.load(folder.user_data).equals(data)


def keep_data(folder: RunFolder, data: Dataset | None, *, may_differ: bool) -> None:
    """Let the folder hold these arrays, and none but these.

    Args:
        folder: Of the run.
        data: What the run was given.
        may_differ: Whether it may be something else than before, of which accuracies then were.
    """
    kept = folder.user_data
    if _holds(folder, data):
        return
    if may_differ:
        forget_validations(folder.checkpoints)
    if data is None:
        kept.unlink()
    else:
        data.save(kept)


def _holds(folder: RunFolder, data: Dataset | None) -> bool:
    kept = folder.user_data
    if data is None or not kept.exists():
        return data is None and not kept.exists()
    with suppress(DataError):  # It is written anew.
        return Dataset.load(kept).equals(data)
    return False


def _facts(folder: RunFolder) -> DataFacts | None:
    """What the run knew of its data; none where that cannot be read."""
    with suppress(RunFolderError):
        return folder.read_facts()
    return None
