"""``fit``: from a recipe to a trained network."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from ppll.callbacks import CallbackLike, check_callbacks, followed
from ppll.checkpoints.first_values import put_back, skeleton_of
from ppll.checkpoints.recovery import Recovered, newest_whole
from ppll.checkpoints.run_data import kept_data
from ppll.checkpoints.starting import Beginning, begin, find_beginning, next_start
from ppll.checks import check_recipe, check_resuming, check_start
from ppll.claim import locked
from ppll.config import Recipe
from ppll.data import Dataset, load_dataset, prepare
from ppll.data.kept import digest_of
from ppll.data.preparation import PreparedData, facts_of
from ppll.data_facts import DataFacts
from ppll.decoding_view import decoding_shown
from ppll.errors import Interrupted, WorkerError
from ppll.faults import Fault
from ppll.given import as_recipe, check_dataset, with_own_data
from ppll.hosts.run import Hosts
from ppll.interrupts import Interrupts
from ppll.job import Job, RankResult, draw_blueprint, found_network
from ppll.launching.launch import Watcher
from ppll.launching.restarts import run_with_restarts
from ppll.launching.script import check_script, refuse_import
from ppll.live import progress_console, shown, together
from ppll.metrics import merge_metrics
from ppll.models.identity import describe_layers
from ppll.models.splitting import Model, plain_row
from ppll.placement import mesh_of
from ppll.result import Result, merge_results, read_result, written
from ppll.run_folder import RunFolder, default_folder, take_free
from ppll.tensorboard import TensorBoard
from ppll.torchrun import is_first_process, started_by_torchrun
from ppll.tracing.timeline import merge_timeline
from ppll.trained.weights import read_weights

__all__ = ["Trainer"]

_log = logging.getLogger(__name__)


class Trainer:
    """Trains a network cut into blocks, each by its own local loss, on one or more stages.

    ::

        cut the network into blocks; give every block an auxiliary network and an optimizer
        write the checkpoint of step 0
        for every stage, in a process of its own (or here, if there is one):
            load the stage's blocks from the checkpoint
            for every message: forward, send, learn
        merge what the stages report

    Args:
        recipe: A recipe, the sections of one, a recipe file, or the name of a shipped one.
        model: Your own network: an ``nn.Sequential``, modules each of which feeds the next, or any
            model that ``ppll.split`` can cut. It starts from the values it has, and holds the
            trained ones after ``fit``.
        data: Your own data; a run that goes on has what it was given before.
        out: The run folder; ``runs/<recipe>-<time>`` without, with a number if that is taken.
        name: What the default run folder is called after; by default the recipe.
        resume: Go on from the newest whole checkpoint in ``out``, if there is one.
        allow_change: With ``resume``: keys or sections of the recipe that may differ from what the
            run was trained by so far, although that changes what is trained.
        max_restarts: How often a run that fails starts again from its newest checkpoint.
        progress: Whether to show on stderr how far the run is, as ``ppll train`` does; by default
            on a terminal and in a notebook only. Or a console of rich to show it on.
        watch: Is shown every stage's status a few times a second.
        callbacks: ``Callback`` objects, or functions that take a row of metrics; they run in this
            process, in a thread of their own.

    Raises:
        UsageError: The recipe, the network or the data cannot be trained so.
    """

    def __init__(
        self,
        recipe: Recipe | Mapping[str, Any] | str | Path,
        *,
        model: Model | None = None,
        data: Dataset | None = None,
        out: str | Path | None = None,
        name: str | None = None,
        resume: bool = False,
        allow_change: Sequence[str] = (),
        max_restarts: int = 0,
        progress: bool | Console | None = None,
        watch: Watcher | None = None,
        callbacks: Sequence[CallbackLike] = (),
    ) -> None:
        refuse_import()
        check_resuming(resume=resume, out=out, allow_change=allow_change)
        name = name or (str(recipe) if isinstance(recipe, str | Path) else "run")
        self.recipe = as_recipe(recipe, own_model=model is not None)
        self._own_network = None if model is None else plain_row(model)
        self._own_data = check_dataset(data)
        self._out = Path(out) if out is not None else default_folder(name)
        self._takes_free = out is None
        self._allowed = tuple(allow_change)
        self._max_restarts = max_restarts
        self._console = progress_console(progress) if is_first_process() else None
        self.watch = watch
        self.callbacks = check_callbacks(callbacks)
        if self.recipe.track.tensorboard:
            self.callbacks.append(TensorBoard())
        self._stop = threading.Event()
        self._generation = 0
        self._hosts: Hosts | None = None
        if started_by_torchrun():
            self._hosts = Hosts.join(self.recipe)
        with self._together():
            if self._hosts is not None:
                self.recipe = self._hosts.agree(self.recipe, out, max_restarts)
                # Another start of the same by torchrun follows a failure.
                self._generation = self._hosts.count_starts(self._out) if self._is_first else 0
            self._resume = resume or self._generation > 0
            if self._is_first:
                self._look_into_folder()
            # What is quick to find out comes first: reading a data set may take a minute.
            check_recipe(self.recipe, own_model=model is not None)
            if self._hosts is None and (max_restarts or self.recipe.has_processes):
                check_script(self._own_network.as_module() if self._own_network else None)
            prepared = self._load() if self._is_first else None
            self._facts = self._share(prepared)
            if self._facts.is_given:
                self.recipe = with_own_data(self.recipe)
            self._own_network = self._own_network or found_network(model, self.recipe, self._facts)
            self.blueprint = draw_blueprint(self.recipe, self._facts, self._own_network)
            self.blueprint.stage_blocks(self.recipe.runtime.stages)
            if prepared is not None:
                check_start(self.blueprint, prepared, RunFolder(self._out.absolute()))
            self._trained = self._read_weights() if self._is_first else None

    def check(self) -> int:
        """Find out whether ``fit`` can begin, without training or writing anything.

        Returns:
            The step that it would begin from: of the newest whole checkpoint, or 0.

        Raises:
            UsageError: The run in the folder is another one.
            CheckpointError: All its checkpoints are damaged.
        """
        found = find_beginning(self._beginning(RunFolder(self._out.absolute())))
        return found.step if found is not None else 0

    def fit(self) -> Result:
        """Train from the beginning, or from where the run stopped, to the end.

        A run that is at its end already is not carried out again: its result is given back, and
        callbacks are told nothing.

        Where ``torchrun`` has started several processes, each of them calls this, carries out one
        stage, and returns the result of all.

        Raises:
            UsageError: The run folder is taken, or the run in it is another one.
            CheckpointError: All checkpoints of the run are damaged; or its last values are not
                finite, so the user's own network cannot hold them.
            WorkerError: A stage failed; the message names it and the cause.
            Interrupted: Ctrl-C or SIGTERM came; a checkpoint was written, unless it came twice.
                The same with ``out=...`` and ``resume=True`` goes on.
        """
        self._stop.clear()
        with self._together():
            if not self._is_first:
                return self._follow()
            self._check_folder()
            if self._takes_free:
                self._out, self._takes_free = take_free(self._out), False
            folder = RunFolder.make(self._out)
            with locked(folder.path):
                if self._hosts is not None:
                    self._hosts.prove_folder(folder.path)
                beginning = self._beginning(folder)
                found = begin(beginning)
                return self._finished(beginning, found) or self._carry_out(beginning)

    def stop(self) -> None:
        """End the run that ``fit`` carries out as if it were at its end; may be called by callbacks
        and in any thread.

        A checkpoint is written after the batch that the run is at, and everything is evaluated
        there. Then ``fit`` returns: the result has ``stopped``, the network holds the values of
        that step, and ``resume=True`` goes on from it. Which batch it is depends on timing, what
        is saved there does not. Nothing happens where no run goes on, or it ends already.
        """
        self._stop.set()
        if self._hosts is not None:
            self._hosts.board.stop()

    @property
    def _is_first(self) -> bool:
        """Whether this process begins the run: the only one, unless torchrun has started more."""
        return self._hosts is None or self._hosts.is_first

    def _together(self) -> AbstractContextManager[None]:
        return nullcontext() if self._hosts is None else self._hosts.together()

    def _share(self, prepared: PreparedData | None) -> DataFacts:
        facts = None if prepared is None else facts_of(prepared)
        is_given = self._own_data is not None
        if prepared is not None and facts is not None and (is_given or self.recipe.data.is_own):
            digest = digest_of(self._own_data or prepared.dataset)
            facts = dataclasses.replace(facts, is_given=is_given, digest=digest)
        if self._hosts is not None:
            return self._hosts.share_facts(facts)
        assert facts is not None  # the only process has loaded the data
        return facts

    @property
    def _resumes(self) -> bool:
        """Whether there is a run to go on with; this trainer may have begun it."""
        return self._resume and RunFolder(self._out.absolute()).config.is_file()

    def _look_into_folder(self) -> None:
        """See that it is free or the run's, and take its arrays where no others are given."""
        # Others do not: a network's file system would remember for a minute that it was not there.
        self._check_folder()
        if self._resume and self._own_data is None:
            folder = RunFolder(self._out.absolute())
            self._own_data = kept_data(folder, self.recipe.data, self._allowed)

    def _check_folder(self) -> None:
        """Refuse a folder that is taken."""
        if not self._resumes and not self._takes_free:
            RunFolder(self._out.absolute()).check_free()

    def _load(self) -> PreparedData:
        with decoding_shown(self._console):
            data = self._own_data or load_dataset(self.recipe.data)
        return prepare(data, self.recipe.data)

    def _read_weights(self) -> dict[str, Tensor] | None:
        source = self.recipe.model.weights
        if source is None:
            return None
        checkpoints = RunFolder(self._out.absolute()).checkpoints
        if self._resumes and newest_whole(checkpoints) is not None:
            return None  # First values do not matter.
        return read_weights(source, self.blueprint.network, self.recipe.model.fresh)

    def _beginning(self, folder: RunFolder) -> Beginning:
        return Beginning(
            self.blueprint,
            self._job(folder),
            self._own_data,
            self._trained,
            self._resumes,
            self._allowed,
        )

    def _job(self, folder: RunFolder) -> Job:
        stages, network = self.recipe.runtime.stages, self._own_network
        num_ranks = mesh_of(self.recipe.train.replicas, stages).size
        return Job(
            self.recipe,
            folder,
            self._facts,
            self.blueprint.shapes,
            stages,
            skeleton=skeleton_of(self.blueprint.network, num_ranks) if network else None,
            layers=describe_layers(self.blueprint.network),
            user_data=self._facts.is_given,
            fault=Fault.from_environment(),
        )

    def _finished(self, beginning: Beginning, found: Recovered | None) -> Result | None:
        """What the run came to, where it is at its end and nothing else is asked for."""
        folder, end = beginning.job.folder, self.blueprint.num_steps
        is_at_end = found is not None and found.step == end and folder.result.is_file()
        if not is_at_end or self._allowed or self._hosts is not None:
            return None
        result = read_result(folder)
        if result.step != end or not result.exit_accuracy:
            return None
        _log.info(
            "finished already at step %d; to train more, raise train.epochs (or train.max_steps)",
            end,
        )
        # The folder may have been moved since.
        result = dataclasses.replace(result, run_folder=str(folder.path))
        return self._concluded(beginning.job, result)

    def _carry_out(self, beginning: Beginning) -> Result:
        with shown(self._console, self.blueprint, self._facts) as view:
            callbacks = [*self.callbacks, *view]
            watchers = [w for w in (self.watch, *(v.update for v in view)) if w is not None]
            with followed(callbacks, beginning.job.folder, self.recipe) as run:
                job, run.result = self._run(beginning, together(watchers))
        return self._concluded(job, run.result)

    def _run(self, beginning: Beginning, watch: Watcher | None) -> tuple[Job, Result]:
        """The job as it was carried out, and what came of it."""
        job, folder = beginning.job, beginning.job.folder
        try:
            if self._hosts is not None:
                self._hosts.board.watch = watch
                job, results = self._hosts.carry_out(next_start(beginning, self._generation))
            else:
                results = self._launch(beginning, watch)
        finally:
            merge_metrics(folder.metric_parts, folder.metrics)
            merge_timeline(folder.traces, folder.timeline)
        result = merge_results(job, results, self.blueprint.num_blocks)
        return job, written(result, folder, has_trained=results[0].samples > 0)

    def _launch(self, beginning: Beginning, watch: Watcher | None) -> list[RankResult]:
        # A run in this process is ended by the second signal, if the first does not suffice.
        stays_here = beginning.job.mesh.size == 1 and not self._max_restarts
        with Interrupts(most=1 if stays_here else None, stop=self._stop) as interrupts:
            try:
                return run_with_restarts(beginning, interrupts, watch, self._max_restarts)
            except WorkerError as error:
                error.add_note(beginning.job.folder.after_failure)
                raise

    def _follow(self) -> Result:
        """Carry out a stage of the run that the first process begins."""
        assert self._hosts is not None  # only there others are first
        folder = RunFolder(self._out.absolute())
        self._hosts.prove_folder(folder.path)
        job, _ = self._hosts.carry_out(self._job(folder))
        return self._concluded(job, None)

    def _concluded(self, job: Job, result: Result | None) -> Result:
        """The result, with the trained values in the user's own network."""
        if self._hosts is not None:
            result = self._hosts.part(result)
        assert result is not None  # only another process's result is heard first
        if result.step < self.blueprint.num_steps and not result.stopped:  # A signal came.
            raise Interrupted(f"interrupted at step {result.step}; saved in {job.folder.to_go_on}")
        if self._own_network is not None:
            put_back(job.folder, result.step, self._own_network)
        return result
