"""``fit``: from a recipe to a trained network."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import pickle
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ppll.block import Block
from ppll.checkpoint import TensorReader, commit, newest_checkpoint, step_folder, write_block
from ppll.config import Recipe, load_recipe
from ppll.data import Dataset, PreparedData, load_dataset, prepare
from ppll.errors import DataError, Interrupted, ModelError, RecipeError, RunFolderError, WorkerError
from ppll.failure import Failure
from ppll.interrupts import Interrupts
from ppll.job import DataFacts, Job, RankResult, draw_blueprint
from ppll.launch import Launcher, Watcher
from ppll.metrics import merge_metrics
from ppll.models.network import Layer, Network, initialise
from ppll.rank import run_rank
from ppll.run_folder import Result, RunFolder
from ppll.split import Blueprint
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
        self.watch = watch
        self._data = prepare(data or load_dataset(self.recipe.data), self.recipe.data)
        facts = _facts(self._data)
        self.blueprint = draw_blueprint(self.recipe, facts, self._own_network)
        self.blueprint.stage_blocks(self.recipe.runtime.stages)
        _check_devices(self.recipe)
        _check_batch_norm(self.blueprint, self._data)
        self._facts = facts

    def fit(self) -> Result:
        """Train from the beginning to the end.

        Raises:
            UsageError: The run folder is taken.
            WorkerError: A stage failed; the message names it and the cause.
            Interrupted: Ctrl-C or SIGTERM came; a checkpoint was written.
        """
        job = self._begin()
        with Interrupts() as interrupts:
            results = _carry_out(job, interrupts, self.watch)
        result = _merge(job, results, self.blueprint.num_blocks)
        job.folder.write_result(result)
        merge_metrics(job.folder.metric_parts.glob("rank-*.jsonl"), job.folder.metrics)
        if interrupts.ends_early and result.step < self.blueprint.num_steps:
            raise Interrupted(f"interrupted at step {result.step}; saved in {job.folder.path}.")
        if self._own_network is not None:
            _put_back(job, result.step, self._own_network)
        return result

    def _begin(self) -> Job:
        """Make the run folder and the checkpoint of step 0, from which every rank starts."""
        stages = self.recipe.runtime.stages
        skeleton = _skeleton(self._own_network, stages) if self._own_network else None
        folder = RunFolder.create(self._out, self.recipe)
        if self._own_data is not None:
            self._own_data.save(folder.user_data)
        _write_first_checkpoint(self.blueprint, folder, own=self._own_network is not None)
        return Job(
            self.recipe,
            folder,
            self._facts,
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
        raise RunFolderError(f"the network of {run} was given from Python, so it is not known here.")
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
        stages,
        start_step=TensorReader(checkpoint).manifest.step,
        user_data=own_data,
        evaluates_only=True,
    )
    with Interrupts() as interrupts:
        return _merge(job, _carry_out(job, interrupts, watch), blueprint.num_blocks)


def _carry_out(job: Job, interrupts: Interrupts, watch: Watcher | None) -> list[RankResult]:
    if job.num_stages > 1:
        return Launcher(job, interrupts, watch).run()
    return [_run_here(job, interrupts, watch)]


def _run_here(job: Job, interrupts: Interrupts, watch: Watcher | None) -> RankResult:
    """The only stage of a run, in this process; leave its random state and threads as they were."""
    page = StatusPage()
    monitor = injected_monitor(job.fault, 0, Monitor(page))
    num_threads = torch.get_num_threads()
    ended = threading.Event()
    if watch is not None:
        threading.Thread(target=_show, args=(page, watch, ended), daemon=True).start()
    try:
        with torch.random.fork_rng(devices=[]):
            return run_rank(job, 0, monitor, lambda: interrupts.ends_early)
    except Exception as error:
        failure = Failure.of(error, 0, monitor.status, time.monotonic())
        raise WorkerError(failure.message()) from error
    finally:
        ended.set()
        torch.set_num_threads(num_threads)


def _show(page: StatusPage, watch: Watcher, ended: threading.Event) -> None:
    while not ended.wait(0.1):
        watch([page.read()])


def _as_recipe(recipe: Recipe | Mapping[str, Any] | str | Path, *, own_model: bool) -> Recipe:
    if isinstance(recipe, str | Path):
        recipe = load_recipe(recipe)
    elif not isinstance(recipe, Recipe):
        recipe = Recipe.from_dict(recipe)
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


def _check_devices(recipe: Recipe) -> None:
    devices = recipe.runtime.devices
    asked = devices if isinstance(devices, tuple) else ()
    for name in asked:
        if name != "cpu":
            found = torch.cuda.device_count()
            raise RecipeError(
                f"runtime.devices asks for {name!r}, but this machine has {found} GPU(s) that "
                f'PPLL can use: set runtime.devices = "cpu".'
            )


def _check_batch_norm(blueprint: Blueprint, data: PreparedData) -> None:
    """Batch norm cannot learn from one sample, so a last batch of one is refused beforehand."""
    num_train, batch_size = len(data.train_samples), data.config.batch_size
    if num_train % batch_size != 1 or data.config.drop_last:
        return
    modules = [layer.module for layer in blueprint.network.layers]
    modules += [blueprint.build_auxiliary(i) for i in range(blueprint.num_blocks - 1)]
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for root in modules for m in root.modules()):
        raise DataError(
            f"the last training batch of an epoch has one sample ({num_train} samples in "
            f"batches of {batch_size}), which batch norm cannot learn from: "
            f"set data.drop_last = true, or another data.batch_size."
        )


def _skeleton(network: Network, stages: int) -> Network:
    """The network without its values, which travel in the checkpoint of step 0."""
    layers = [Layer(x.name, copy.deepcopy(x.module).to("meta")) for x in network.layers]
    skeleton = dataclasses.replace(network, layers=tuple(layers))
    if stages > 1:
        try:
            pickle.dumps(skeleton)
        except Exception as error:
            raise ModelError(
                f"the network cannot be handed to other processes ({error}): define its classes "
                f"at the top of a module and use no lambdas, or set runtime.stages = 1."
            ) from None
    return skeleton


def _write_first_checkpoint(blueprint: Blueprint, folder: RunFolder, *, own: bool) -> None:
    target = step_folder(folder.checkpoints, 0)
    seed = blueprint.recipe.train.seed
    own_layers = {layer.name for layer in blueprint.network.layers} if own else set()
    for index in range(blueprint.num_blocks):
        block = blueprint.build_block(index, torch.device("cpu"))
        for prefix, module in block.modules():
            if prefix not in own_layers:
                initialise(module, prefix, seed)
        tensors = {**dict(block.named_tensors()), **_own_values(block, blueprint, own_layers)}
        write_block(target, 0, index, tensors, {})
    commit(target, 0, blueprint.num_blocks)


def _own_values(block: Block, blueprint: Blueprint, names: set[str]) -> dict[str, torch.Tensor]:
    if not names:
        return {}
    values = _named_tensors(blueprint.network)
    return {name: values[name] for name, _ in block.named_tensors() if name in values}


def _put_back(job: Job, step: int, network: Network) -> None:
    """Copy the trained values into the user's own network."""
    saved = TensorReader(step_folder(job.folder.checkpoints, step)).all_weights()
    with torch.no_grad():
        for name, tensor in _named_tensors(network).items():
            tensor.copy_(saved[name])


def _named_tensors(network: Network) -> dict[str, torch.Tensor]:
    module = network.as_module()
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _merge(job: Job, results: list[RankResult], num_blocks: int) -> Result:
    seconds = max(r.seconds for r in results)
    exits: dict[str, dict[int, float]] = {}
    for rank_result in results:
        for split, tallies in rank_result.exits.items():
            exits.setdefault(split, {}).update(tallies)
    test = [exits["test"][i] for i in range(num_blocks)] if "test" in exits else []
    validation = exits.get("validation", {}).get(num_blocks - 1)
    lines = sorted(line for r in results for line in r.digests)
    step = results[0].step
    return Result(
        step=step,
        epoch=step // job.facts.steps_per_epoch,
        train_seconds=seconds,
        samples_per_second=results[0].samples / seconds if seconds else 0.0,
        test_accuracy=test[-1] if test else None,
        exit_accuracy=tuple(test),
        validation_accuracy=validation,
        num_blocks=num_blocks,
        num_stages=job.num_stages,
        busy_fraction=tuple(r.busy_fraction for r in results),
        peak_memory_bytes=tuple(r.peak_memory_bytes for r in results),
        weights_sha256=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        run_folder=str(job.folder.path),
    )
