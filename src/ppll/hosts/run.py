"""A run whose processes ``torchrun`` has started, on one host or on many.

The first process begins the run as a launcher would and tells the others; then each carries out its
stage, and all hear what all came to. What one process cannot do, none does.
"""

from __future__ import annotations

import atexit
import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

import pydantic

from ppll.config import Recipe
from ppll.data_facts import DataFacts
from ppll.errors import ChannelTimeout, UsageError
from ppll.faults import injected_monitor
from ppll.hosts.board import Board
from ppll.hosts.departure import Departure, bound_to_agent
from ppll.hosts.meeting import (
    agree_on,
    check_world,
    count_starts,
    hear_facts,
    hear_job,
    private_folder,
    prove_folder,
    tell_facts,
    tell_job,
)
from ppll.job import Job, RankResult
from ppll.mesh import Mesh
from ppll.numerics import torch_as_new
from ppll.placement import mesh_of_size
from ppll.rank import run_rank
from ppll.result import Result
from ppll.torchrun import starts_again
from ppll.world import World

__all__ = ["Hosts"]

_RANK_RESULT: Final = pydantic.TypeAdapter(RankResult)
_RESULT: Final = pydantic.TypeAdapter(Result)
_PARTING_S: Final = 10.0
_READY_S: Final = 120.0
"""How long all may take, at the least, to begin once the job is known."""


class Hosts:
    """The processes of a run, and this one's place among them.

    Args:
        world: All processes.
        board: What they know of each other while the run goes on.
        departure: How this one leaves.
    """

    def __init__(self, world: World, board: Board, departure: Departure) -> None:
        self._world = world
        self._departure = departure
        self._is_over = False
        self.board = board

    @classmethod
    def join(cls, recipe: Recipe) -> Self:
        """Meet the other processes.

        Raises:
            ChannelError: torchrun's store cannot be reached.
        """
        departure = bound_to_agent()
        world = World.join()
        mesh = mesh_of_size(recipe.train.replicas, world.size) or Mesh.of(world.size)
        board = Board(world, mesh, recipe.runtime.stall_timeout_s, departure)
        atexit.register(board.close)  # Nothing may be trained.
        return cls(world, board, departure)

    @property
    def is_first(self) -> bool:
        """Whether this process begins the run and keeps its folder."""
        return self._world.rank == 0

    def agree(self, recipe: Recipe, out: str | Path | None, max_restarts: int) -> Recipe:
        """Make sure that all were asked for the same; the recipe on as many stages as processes.

        Raises:
            UsageError: They were not, or it cannot be.
        """
        if out is None:
            raise UsageError(
                "torchrun starts a run in a folder that all hosts are told: give --out "
                "(Trainer(..., out=...) in Python)."
            )
        recipe = check_world(self._world, recipe, max_restarts)
        agree_on(self._world, recipe, Path(out))
        return recipe

    def count_starts(self, out: Path) -> int:
        """How often torchrun has started this run before; for the first process, once a start."""
        return count_starts(self._world, out)

    def share_facts(self, facts: DataFacts | None) -> DataFacts:
        """The first process's facts of the data, which gives them; the others hear them."""
        if facts is None:
            return hear_facts(self._world)
        tell_facts(self._world, facts)
        return facts

    def prove_folder(self, run: Path) -> None:
        """Make sure that all see one run folder.

        Raises:
            RunFolderError: This process does not.
        """
        prove_folder(self._world, run)

    def carry_out(self, job: Job) -> tuple[Job, list[RankResult]]:
        """Run this process's stage.

        Args:
            job: The run; as it begins in the first process, as far as it is known in the others.

        Returns:
            The job as it was carried out, and what all stages came to; in the others than the first
            process nothing, since they hear when they part.
        """
        job = tell_job(self._world, job) if self.is_first else hear_job(self._world, job)
        folder = private_folder(self._world)
        self._departure.leftovers.append(folder)
        if not starts_again():
            self.board.after_failure = job.folder.after_failure
        job = dataclasses.replace(job, sockets=folder)
        rank = self._world.rank
        monitor = injected_monitor(job.fault, job.generation, rank, self.board.monitor)
        # Nobody looks for who stands still before all have begun.
        self._world.meet("ready", max(job.recipe.runtime.stall_timeout_s, _READY_S))
        # The same moment on all clocks, but for what a message takes.
        origin_s = self.board.begun_s = time.monotonic()
        with torch_as_new():
            result = run_rank(
                job, rank, monitor, lambda: self.board.wish, self._world, self.board.tell
            )
        result = dataclasses.replace(result, started_s=result.started_s - origin_s)
        found = self._world.collect("result", dataclasses.asdict(result))
        return job, [_RANK_RESULT.validate_python(entry) for entry in found]

    def part(self, result: Result | None) -> Result:
        """The run is over for all when the first process has written what it came to.

        The first one leaves last: where agents do not share their store with the processes
        (``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1``), it is in the first process and gone with it.

        Args:
            result: What the first process has written; the others hear it.
        """
        if result is not None:
            self._world.publish("over", dataclasses.asdict(result))
        else:
            result = _RESULT.validate_python(self._world.read("over"))
        self._is_over = True
        self._departure.remove_leftovers()
        self.board.close()
        atexit.unregister(self.board.close)
        with suppress(ChannelTimeout, RuntimeError):  # as torch's stores raise
            self._world.collect("parted", True, _PARTING_S)
        return result

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let all processes leave for what went wrong first; signals end the run for all.

        Raises:
            UsageError: The run is over: what they have told each other is of that one.
        """
        if self._is_over:
            raise UsageError(
                "under torchrun a Trainer carries out one run, and that of this one is over: make "
                "another."
            )
        with self.board.hearing_signals(), self.board.ending_together():
            yield
