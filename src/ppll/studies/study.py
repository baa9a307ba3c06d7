"""Train the runs of a study, some side by side, and go on where an earlier start stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ppll.claim import locked
from ppll.errors import Interrupted, RecipeError, RunFolderError
from ppll.interrupts import Interrupts
from ppll.studies.outcome import read_outcome
from ppll.studies.runs import StudyRun, check_same_recipe
from ppll.trainer import Trainer

__all__ = ["check_runs", "hold", "named_error", "train_all"]

_TURN_S: Final = 0.1
_ERROR: Final = re.compile(r"^(?:\w+\.)*([A-Z]\w*Error\b.*)", re.MULTILINE)
"""As a run says it, or as Python ends a traceback: behind the name of a module."""


@contextmanager
def hold(out: Path) -> Iterator[None]:
    """Make a study's folder and keep other studies out of it.

    Raises:
        RunFolderError: It cannot be made, or another study is at work in it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"cannot make the study's folder {out}: {error}.") from None
    with locked(out):
        yield


def check_runs(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """Find out what cannot be before anything is trained.

    Returns:
        The runs that are not finished.

    Raises:
        UsageError: A recipe cannot be trained, a run was trained by another one, or somebody else
            trains it at this moment.
    """
    for run in runs:
        check_same_recipe(run)
    left = [run for run in runs if read_outcome(run) is None]
    for run in left:
        if run.folder.path.is_dir():
            with locked(run.folder.path):
                pass
    for run in {run.row: run for run in reversed(left)}.values():
        trainer = Trainer(run.recipe, out=run.folder.path, resume=True)
        if trainer.blueprint.facts.predicts_values:
            raise RecipeError(
                f"{run.recipe_name}: the data has values to predict, of which a study, which "
                f"compares accuracies, makes no table: train the runs one by one and lay them "
                f"side by side by ppll report RUN RUN."
            )
    return left


def train_all(
    runs: Sequence[StudyRun],
    *,
    parallel: int = 1,
    noted: Callable[[str], None],
    finished: Callable[[], object],
) -> list[str]:
    """Train runs to their end; one that fails does not keep the others from it.

    Args:
        runs: What ``check_runs`` left.
        parallel: How many go on side by side.
        noted: Is told of every start and end.
        finished: Is called when a run is finished.

    Returns:
        One line a run that failed.

    Raises:
        Interrupted: Ctrl-C or SIGTERM came; every run that was going on has saved itself.
    """
    crew = _Crew(runs, parallel, noted, finished)
    with Interrupts() as interrupts:
        try:
            while crew.is_busy:
                crew.turn(interrupts.count)
                time.sleep(_TURN_S)
        finally:
            crew.disband()
    if crew.num_left:
        raise Interrupted(
            f"interrupted with {crew.num_left} of {len(runs)} runs left; the same command goes on "
            f"where they stopped."
        )
    return crew.failures


class _Crew:
    """The processes that train the runs, and what became of those that are through."""

    def __init__(
        self,
        runs: Sequence[StudyRun],
        parallel: int,
        noted: Callable[[str], None],
        finished: Callable[[], object],
    ) -> None:
        self.failures: list[str] = []
        self.num_left = len(runs)
        self._waiting = deque(runs)
        self._active: list[_Training] = []
        self._num_runs = len(runs)
        self._parallel = parallel
        self._noted = noted
        self._finished = finished
        self._seconds: list[float] = []

    @property
    def is_busy(self) -> bool:
        """Whether anything is to be done."""
        return bool(self._waiting or self._active)

    def turn(self, num_interrupts: int) -> None:
        """Start what can start, pass interrupts on, and see who is through."""
        if num_interrupts:
            self._waiting.clear()
        while self._waiting and len(self._active) < self._parallel:
            self._start(self._waiting.popleft())
        for training in list(self._active):
            training.ask_to_end(num_interrupts)
            code = training.exit_code()
            if code is not None:
                self._active.remove(training)
                training.close()
                self._end(training, code, was_asked=num_interrupts > 0)

    def disband(self) -> None:
        """Leave no process behind, whatever went wrong."""
        for training in self._active:
            training.ask_to_end(1)
        for training in self._active:
            training.close()

    def _start(self, run: StudyRun) -> None:
        verb = "goes on" if run.folder.config.is_file() else "starts"
        self._active.append(_Training(run))
        self._noted(f"{run.name} {verb}")

    def _end(self, training: _Training, code: int, *, was_asked: bool) -> None:
        run, seconds = training.run, training.seconds
        outcome = read_outcome(run)  # A signal may have come when all was done.
        if outcome is None and was_asked:
            self._noted(f"{run.name} is stopped")
            return
        self.num_left -= 1
        if outcome is None:
            self.failures.append(f"{run.name}: {training.reason(code)} (see {run.log})")
            self._noted(f"{run.name} failed after {_duration(seconds)}{self._time_left()}")
            return
        self._seconds.append(seconds)
        reached = f"{outcome.test_accuracy:.2%} after {_duration(seconds)}"
        self._noted(f"{run.name}: {reached}{self._time_left()}")
        self._finished()

    def _time_left(self) -> str:
        """How far the study is, and what is left if runs take as long as they did so far."""
        through = f"; {self._num_runs - self.num_left} of {self._num_runs} through"
        if not self.is_busy or not self._seconds:
            return through
        usual = statistics.mean(self._seconds)
        going_on = sum(max(0.0, usual - training.seconds) for training in self._active)
        left_s = (usual * len(self._waiting) + going_on) / self._parallel
        return f"{through}, about {_duration(left_s)} left"


class _Training:
    """A run in a process of its own.

    The process is the first of a group of its own, so a terminal's Ctrl-C reaches the study alone.
    """

    def __init__(self, run: StudyRun) -> None:
        self.run = run
        self._began_s = time.monotonic()
        self._num_signals = 0
        run.log.parent.mkdir(parents=True, exist_ok=True)
        with run.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ppll.studies.process", str(run.folder.path)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                process_group=0,
                # A method of the user's own is found where it was found here.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # It is gone already, which its exit code tells.
            recipe = json.dumps(run.recipe.model_dump(mode="json"))
            self._process.stdin.write(f"{recipe}\n".encode())
            self._process.stdin.flush()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began_s

    def exit_code(self) -> int | None:
        """None while it goes on."""
        return self._process.poll()

    def ask_to_end(self, times: int) -> None:
        """Make sure that it was asked so many times: first to save itself, then to stop at once."""
        while self._num_signals < times:
            self._num_signals += 1
            # Unlike SIGINT it is not ignored by what a script started in the background.
            self._process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Wait for its end and let go of it."""
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def reason(self, code: int) -> str:
        """Why it failed, on one line."""
        if code < 0:
            return f"the process was killed by {signal.Signals(-code).name}"
        text = self.run.log.read_text(encoding="utf-8", errors="replace")
        return named_error(text) or f"the process ended with exit code {code}"


def named_error(text: str) -> str | None:
    """The first error that a run's log names; none where it names none."""
    found = _ERROR.search(text)
    return found[1] if found else None


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
