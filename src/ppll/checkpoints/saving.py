"""One rank's part in checkpoints: copy at the mark, write in the background, commit at the end."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppll.blocks.block import Block
from ppll.blocks.slow import InFlight
from ppll.checkpoints.checkpoint import (
    NonFiniteCheckpoint,
    check_finite,
    commit,
    is_committed,
    step_folder,
    write_block,
    write_validation,
)
from ppll.checkpoints.manifest import NetworkRecord, ValidationRecord
from ppll.checkpoints.recovery import prune, remove
from ppll.claim import Claim
from ppll.errors import CheckpointError
from ppll.message import NOTHING_SAVED

__all__ = ["SaveRules", "Saver"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveRules:
    """What holds for all checkpoints of a run.

    Attributes:
        checkpoints: The run's folder of checkpoints.
        num_blocks: Blocks of the whole network.
        recipe: What the manifest says the blocks were trained by.
        keep: How many of the newest checkpoints stay.
        network: What it says the network is.
        keeps_best: Whether the one with the best validation accuracy stays, too.
        claim: The right to write; none for a double that nobody competes with.
        passes_over_nonfinite: Whether a block with values that are not finite ends the run, or
            only leaves out the checkpoint.
        before_write: Called with the step in the thread that writes; a place for failures.
        block_by_block: Whether a block is written before the next is copied, so that no more than
            one is there as a copy; training waits meanwhile.
    """

    checkpoints: Path
    num_blocks: int
    recipe: dict[str, dict[str, Any]]
    keep: int
    keeps_best: bool = False
    network: NetworkRecord | None = None
    claim: Claim | None = None
    passes_over_nonfinite: bool = False
    before_write: Callable[[int], None] | None = None
    block_by_block: bool = False


@dataclass(frozen=True)
class _BlockCopy:
    """A block as it was when the mark passed."""

    index: int
    tensors: dict[str, Tensor]
    optimizer_tensors: dict[str, Tensor]
    transient: frozenset[str]
    slow_name: str
    in_flight: InFlight | None

    @classmethod
    def of(cls, block: Block) -> _BlockCopy:
        return cls(
            block.index,
            _copy(block.named_tensors()),
            _copy(block.optimizer_tensors()),
            block.modules.transient_names(),
            block.modules.slow_name,
            block.slow.snapshot() if block.slow is not None else None,
        )

    @property
    def is_whole(self) -> bool:
        """Whether everything that belongs to it has come."""
        return self.in_flight is None or self.in_flight.is_complete

    def state(self) -> dict[str, Tensor]:
        """The optimizer's tensors, and the parameters of the next block that were on their way."""
        if self.in_flight is None:
            return self.optimizer_tensors
        return {**self.optimizer_tensors, self.slow_name: self.in_flight.stacked()}


class Saver:
    """Writes the blocks of one stage, and the manifest if the stage is the last.

    Training goes on while a checkpoint is written: only the copy is made when the mark passes. At
    most one checkpoint is being written; the next mark waits for it, so that memory stays bounded.

    Args:
        rules: What holds for all checkpoints of the run.
        commits: Whether this is the last stage, which writes manifests.
        saved_step: The checkpoint that the run started from.
    """

    def __init__(self, rules: SaveRules, *, commits: bool, saved_step: int) -> None:
        self._rules = rules
        self._commits = commits
        self._saved_step = saved_step
        self._upstream_step = NOTHING_SAVED
        self._uncommitted: list[int] = []
        # Of checkpoints that are not committed yet.
        self._validations: dict[int, ValidationRecord] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._writing: Future[None] | None = None
        self._held: deque[tuple[int, list[_BlockCopy]]] = deque()  # parameters are on their way

    @property
    def saved_step(self) -> int:
        """Newest checkpoint that this stage and all before it have on disk."""
        return min(self._saved_step, self._upstream_step)

    def hear(self, upstream_step: int) -> None:
        """Take note of what the stages before this one have on disk; commit what became whole.

        Raises:
            OSError: A checkpoint could not be written.
            CheckpointError: A block has values that are not finite, or another start took over.
        """
        self._upstream_step = upstream_step
        self._write_what_is_whole()
        if self._writing is not None and self._writing.done():
            self._finish_writing()
        while self._uncommitted and self._uncommitted[0] <= self.saved_step:
            self._commit(self._uncommitted.pop(0))

    def save(self, step: int, blocks: Sequence[Block]) -> None:
        """Copy the blocks as they are now and begin to write them.

        Where parameters of the next block are on their way, they are written when these have come.

        Raises:
            OSError: An earlier checkpoint could not be written.
            CheckpointError: A block had values that are not finite, or another start took over.
        """
        self._finish_writing()
        if self._commits:
            self._uncommitted.append(step)
        if self._rules.block_by_block:
            self._write(step, map(_BlockCopy.of, blocks))
            return
        self._held.append((step, [_BlockCopy.of(block) for block in blocks]))
        self._write_what_is_whole()

    def note_validation(self, record: ValidationRecord) -> None:
        """Take note of how good the final output is on the validation part.

        Only the last stage knows it, and only it decides which checkpoints stay.

        Raises:
            OSError: It could not be written.
            CheckpointError: Another start took over.
        """
        if self._commits and self._rules.keeps_best:
            self._check_claim()
            self._validations[record.step] = record
            self._keep_what_counts()

    def finish(self) -> None:
        """Wait until everything is on disk and committed as far as it can be.

        Raises:
            OSError: A checkpoint could not be written.
            CheckpointError: A block has values that are not finite, or another start took over.
        """
        self._write_what_is_whole()
        self._finish_writing()
        self.hear(self._upstream_step)

    def close(self, *, wait: bool = True) -> None:
        """End the thread.

        Args:
            wait: Finish what is being written and commit it if that makes it whole, also after a
                failure. A process that is about to end need not: what is unfinished is no
                checkpoint.
        """
        self._thread.shutdown(wait, cancel_futures=not wait)
        if wait:
            try:
                self.finish()
            except (OSError, CheckpointError) as error:
                _log.warning("the last checkpoint was not finished: %s", error)

    def _write_what_is_whole(self) -> None:
        """Begin to write the copies that nothing is missing of."""
        while self._held and all(copy.is_whole for copy in self._held[0][1]):
            self._finish_writing()
            self._writing = self._thread.submit(self._write, *self._held.popleft())

    def _write(self, step: int, copies: Iterable[_BlockCopy]) -> None:
        self._check_claim()
        if self._rules.before_write is not None:
            self._rules.before_write(step)
        for copy in copies:
            record = write_block(
                step_folder(self._rules.checkpoints, step),
                step,
                copy.index,
                copy.tensors,
                copy.state(),
                copy.transient,
            )
            if not self._rules.passes_over_nonfinite:
                check_finite(record)
            del copy  # Else the next one, if it is only made now, would be beside it.
        self._saved_step = step

    def _finish_writing(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _commit(self, step: int) -> None:
        self._check_claim()
        folder = step_folder(self._rules.checkpoints, step)
        try:
            commit(folder, step, self._rules.num_blocks, self._rules.recipe, self._rules.network)
        except NonFiniteCheckpoint as error:
            if not self._rules.passes_over_nonfinite:
                raise
            _log.warning("%s", error)
            remove(folder)
        else:
            self._keep_what_counts()

    def _keep_what_counts(self) -> None:
        """Note what is known of committed checkpoints, and remove those that need not stay."""
        checkpoints = self._rules.checkpoints
        for step in list(self._validations):
            if is_committed(step_folder(checkpoints, step)):
                write_validation(step_folder(checkpoints, step), self._validations.pop(step))
        best_of = self._rules.recipe if self._rules.keeps_best else None
        prune(checkpoints, self._rules.keep, best_of=best_of)

    def _check_claim(self) -> None:
        if self._rules.claim is not None:
            self._rules.claim.check()


def _copy(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    with torch.no_grad():
        return {name: tensor.to("cpu", copy=True) for name, tensor in tensors}
