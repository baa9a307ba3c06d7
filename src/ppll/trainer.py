"""``fit``: from a recipe to a trained network."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ppll.checkpoint import TensorReader, newest_checkpoint, step_folder
from ppll.checks import check_devices, check_last_batch, check_names
from ppll.config import Recipe, load_recipe
from ppll.data import Dataset, PreparedData, load_dataset, prepare
from ppll.errors import Interrupted, RunFolderError, WorkerError
from ppll.failure import Failure
from ppll.first_values import put_back, skeleton_of, write_first_checkpoint
from ppll.interrupts import Interrupts
from ppll.job import DataFacts, Job, RankResult, draw_blueprint
from ppll.launch import Launcher, Watcher
from ppll.metrics import merge_metrics
from ppll.models.network import Network
from ppll.rank import run_rank
from ppll.result import Result, merge_results
from ppll.run_folder import RunFolder
from ppll.status import Monitor, StatusPage
from ppll.testing import Fault, injected_monitor

__all__ = ["Trainer", "default_folder", "evaluate"]

OWN_MODEL = "(given from Python)"


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
        model: Your own network: an ``nn.Sequential``, or modules each of which feeds the next.
            It starts from the values it has, and holds the trained ones after ``fit``.
        data: Your own data.
        out: The run folder; ``runs/<name>-<time>`` without.
        watch: Is shown every stage's status a few times a second.

    Raises:
        UsageError: The recipe, the network or the data cannot be trained so.
    """

    def __init__(
        self,
        recipe: Recipe | Mapping[str, Any] | str | Path,
        *,
        model: nn.Sequential | Sequence[nn.Module] | None = None,
        data: Dataset | None = None,
        out: str | Path | None = None,
        watch: Watcher | None = None,
    ) -> None:
        name = str(recipe) if isinstance(recipe, str | Path) else "run"
        self.recipe = _as_recipe(recipe, own_model=model is not None)
        self._own_network = None if model is None else Network.from_modules(model)
        self._own_data = data
        self._out = Path(out) if out is not None else default_folder(name)
        # What is quick to find out comes first: reading a data set may take a minute.
        RunFolder(self._out.absolute()).check_free()
        check_devices(self.recipe)
        check_names(self.recipe, own_model=model is not None)
        self.watch = watch
        self._data = prepare(data or load_dataset(self.recipe.data), self.recipe.data)
        facts = _facts(self._data)
        self.blueprint = draw_blueprint(self.recipe, facts, self._own_network)
        self.blueprint.stage_blocks(self.recipe.runtime.stages)
        check_last_batch(self.blueprint, self._data)
        self._facts = facts

    def fit(self) -> Result:
        """Train from the beginning to the end.

        Raises:
            UsageError: The run folder is taken.
            WorkerError: A stage failed; the message names it and the cause.
            Interrupted: Ctrl-C or SIGTERM came; a checkpoint was written.
        """
        job = self._begin()
        # A run in this process is ended by the second signal, if the first does not suffice.
        with Interrupts(most=1 if job.num_stages == 1 else None) as interrupts:
            try:
                results = _carry_out(job, interrupts, self.watch)
            finally:
                merge_metrics(job.folder.metric_parts.glob("rank-*.jsonl"), job.folder.metrics)
        result = merge_results(job, results, self.blueprint.num_blocks)
        job.folder.write_result(dataclasses.asdict(result))
        if interrupts.ends_early and result.step < self.blueprint.num_steps:
            raise Interrupted(f"interrupted at step {result.step}; saved in {job.folder.path}.")
        if self._own_network is not None:
            put_back(step_folder(job.folder.checkpoints, result.step), self._own_network)
        return result

    def _begin(self) -> Job:
        """Make the run folder and the checkpoint of step 0, from which every rank starts."""
        stages = self.recipe.runtime.stages
        skeleton = skeleton_of(self._own_network, stages) if self._own_network else None
        folder = RunFolder.create(self._out, self.recipe)
        if self._own_data is not None:
            self._own_data.save(folder.user_data)
        write_first_checkpoint(
            self.blueprint, folder.checkpoints, own=self._own_network is not None
        )
        return Job(
            self.recipe,
            folder,
            self._facts,
            self.blueprint.shapes,
            stages,
            skeleton=skeleton,
            user_data=self._own_data is not None,
            fault=Fault.from_environment(),
        )


def evaluate(run: str | Path, stages: int = 1, watch: Watcher | None = None) -> Result:
    """Evaluate every exit of a run's newest checkpoint.

    Raises:
        RunFolderError: It is no run, has no checkpoint, or its network was given from Python.
    """
    folder = RunFolder.open(Path(run))
    recipe = folder.read_recipe().with_settings([f"runtime.stages={stages}"])
    if recipe.model.name == OWN_MODEL:
        raise RunFolderError(
            f"the network of {run} was given from Python, so it is not known here."
        )
    checkpoint = newest_checkpoint(folder.checkpoints)
    if checkpoint is None:
        raise RunFolderError(f"{run} has no whole checkpoint.")
    own_data = folder.user_data.exists()
    dataset = Dataset.load(folder.user_data) if own_data else load_dataset(recipe.data)
    facts = _facts(prepare(dataset, recipe.data))
    blueprint = draw_blueprint(recipe, facts, None)
    blueprint.stage_blocks(stages)
    job = Job(
        recipe,
        folder,
        facts,
        blueprint.shapes,
        stages,
        start_step=TensorReader(checkpoint).manifest.step,
        user_data=own_data,
        evaluates_only=True,
    )
    with Interrupts(most=0 if stages == 1 else None) as interrupts:
        return merge_results(job, _carry_out(job, interrupts, watch), blueprint.num_blocks)


def _carry_out(job: Job, interrupts: Interrupts, watch: Watcher | None) -> list[RankResult]:
    if job.num_stages > 1:
        return Launcher(job, interrupts, watch).run()
    return [_run_here(job, interrupts, watch)]


def _run_here(job: Job, interrupts: Interrupts, watch: Watcher | None) -> RankResult:
    """The only stage of a run, in this process."""
    page = StatusPage()
    monitor = injected_monitor(job.fault, 0, Monitor(page))
    ended = threading.Event()
    shower = threading.Thread(target=_show, args=(page, watch, ended), daemon=True)
    if watch is not None:
        shower.start()
    try:
        with _fresh_torch():
            return run_rank(job, 0, monitor, lambda: interrupts.ends_early)
    except Interrupted:
        raise
    except Exception as error:
        failure = Failure.of(error, 0, monitor.status, time.monotonic())
        raise WorkerError(failure.message(), failure) from error
    finally:
        ended.set()
        if watch is not None:
            shower.join()
        page.close()


@contextmanager
def _fresh_torch() -> Iterator[None]:
    """Torch's settings as a new process has them, and afterwards as they were: the bits count."""
    num_threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        with (
            torch.random.fork_rng(devices=[]),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(num_threads)


def _show(page: StatusPage, watch: Watcher | None, ended: threading.Event) -> None:
    while watch is not None and not ended.wait(0.1):
        watch([page.read()])


def _as_recipe(recipe: Recipe | Mapping[str, Any] | str | Path, *, own_model: bool) -> Recipe:
    if isinstance(recipe, str | Path):
        recipe = load_recipe(recipe)
    elif not isinstance(recipe, Recipe):
        recipe = Recipe.from_dict(recipe)
    if recipe.data.root is not None:
        # Other processes, and a later look at the run, may stand in another folder.
        data = recipe.data.model_copy(update={"root": recipe.data.root.absolute()})
        recipe = recipe.model_copy(update={"data": data})
    if own_model:
        recipe = recipe.model_copy(
            update={"model": recipe.model.model_copy(update={"name": OWN_MODEL})}
        )
    return recipe


def default_folder(name: str) -> Path:
    """The run folder of a recipe that is started now: ``runs/<recipe>-<time>``."""
    return Path("runs") / f"{Path(name).stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def _facts(data: PreparedData) -> DataFacts:
    dataset = data.dataset
    return DataFacts(dataset.input_shape, dataset.num_classes, data.steps_per_epoch)
