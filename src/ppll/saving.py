"""One rank's part in checkpoints: copy at the mark, write in the background, commit at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from ppll.block import Block
from ppll.checkpoint import commit, prune, step_folder, write_block
from ppll.message import NOTHING_SAVED

__all__ = ["Saver"]


class Saver:
    """Writes the blocks of one stage, and the manifest if the stage is the last.

    Training goes on while a checkpoint is written: only the copy is made when the mark passes. At
    most one checkpoint is being written; the next mark waits for it, so that memory stays bounded.

    Args:
        checkpoints: The run's folder of checkpoints.
        num_blocks: Blocks of the whole network.
        keep: How many of the newest checkpoints stay.
        commits: Whether this is the last stage, which writes manifests.
        saved_step: The checkpoint that the run started from.
    """

    def __init__(
        self, checkpoints: Path, num_blocks: int, keep: int, *, commits: bool, saved_step: int
    ) -> None:
        self._checkpoints = checkpoints
        self._num_blocks = num_blocks
        self._keep = keep
        self._commits = commits
        self._saved_step = saved_step
        self._upstream_step = NOTHING_SAVED
        self._uncommitted: list[int] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._writing: Future[None] | None = None

    @property
    def saved_step(self) -> int:
        """Newest checkpoint that this stage and all before it have on disk."""
        return min(self._saved_step, self._upstream_step)

    def hear(self, upstream_step: int) -> None:
        """Take note of what the stages before this one have on disk; commit what became whole.

        Raises:
            OSError: An earlier checkpoint could not be written.
        """
        self._upstream_step = upstream_step
        if self._writing is not None and self._writing.done():
            self._finish_writing()
        while self._uncommitted and self._uncommitted[0] <= self.saved_step:
            self._commit(self._uncommitted.pop(0))

    def save(self, step: int, blocks: Sequence[Block]) -> None:
        """Copy the blocks as they are now and begin to write them.

        Raises:
            OSError: An earlier checkpoint could not be written.
        """
        self._finish_writing()
        copies = [
            (b.index, _copy(b.modules.named_tensors()), _copy(b.optimizer_tensors()))
            for b in blocks
        ]
        if self._commits:
            self._uncommitted.append(step)
        self._writing = self._thread.submit(self._write, step, copies)

    def finish(self) -> None:
        """Wait until everything is on disk and committed as far as it can be.

        Raises:
            OSError: A checkpoint could not be written.
        """
        self._finish_writing()
        self.hear(self._upstream_step)

    def close(self) -> None:
        """End the thread; what is being written is finished first."""
        self._thread.shutdown()

    def _write(
        self, step: int, copies: list[tuple[int, dict[str, Tensor], dict[str, Tensor]]]
    ) -> None:
        folder = step_folder(self._checkpoints, step)
        for index, tensors, optimizer_tensors in copies:
            write_block(folder, step, index, tensors, optimizer_tensors)
        self._saved_step = step

    def _finish_writing(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _commit(self, step: int) -> None:
        commit(step_folder(self._checkpoints, step), step, self._num_blocks)
        prune(self._checkpoints, self._keep)


def _copy(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    with torch.no_grad():
        return {name: tensor.to("cpu", copy=True) for name, tensor in tensors}
