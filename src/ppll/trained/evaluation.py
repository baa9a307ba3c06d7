"""Evaluate a run's newest checkpoint again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from ppll.checkpoints.first_values import skeleton_of
from ppll.config import Recipe
from ppll.data import PreparedData, load_dataset, prepare
from ppll.data.kept import read_kept
from ppll.data.own_dataset import check_same_contents
from ppll.data.preparation import facts_of
from ppll.data_facts import DataFacts
from ppll.devices import check_devices
from ppll.errors import DataError, RecipeError
from ppll.interrupts import Interrupts
from ppll.job import Job
from ppll.launching.launch import Watcher
from ppll.launching.restarts import carry_out
from ppll.models.splitting import Model
from ppll.result import Result, merge_results
from ppll.run_folder import RunFolder
from ppll.task_loss import build_task_loss
from ppll.trained.exits import THRESHOLDS, ExitReport, check_thresholds, measure_exits
from ppll.trained.inference import blueprint_of, network_of, open_checkpoint

__all__ = ["evaluate", "evaluate_exits"]

_log = logging.getLogger(__name__)

_PUT_BACK: Final = (
    "put back what it reads, or its module; or test the network yourself (ppll.load)."
)


def evaluate(
    run: str | Path,
    stages: int = 1,
    watch: Watcher | None = None,
    *,
    model: Model | None = None,
    best: bool = False,
    step: int | None = None,
) -> Result:
    """Evaluate every exit of a run's newest checkpoint.

    Images in bytes are normalised as in training, whatever images the training part has now.

    Args:
        run: A run folder.
        stages: Processes that share the blocks.
        watch: Is shown every stage's status a few times a second.
        model: The network, where it was given from Python; it is not changed.
        best: Take the checkpoint with the best validation accuracy instead of the newest.
        step: Take the checkpoint after so many training batches.

    Raises:
        UsageError: Both ``best`` and ``step`` are given.
        RunFolderError: It is no run, or has no such checkpoint.
        DataError: The data is missing or is not the run's.
        ModelError: ``model`` is missing, is not wanted, or is another network.
        RecipeError: The class that is its loss cannot be imported.
        CheckpointError: All its checkpoints are damaged, or the one that is asked for is.
    """
    folder, found, recipe = open_checkpoint(run, model, best=best, step=step)
    recipe = _on_devices_here(recipe.with_settings([f"runtime.stages={stages}"]))
    facts = found.facts(folder)
    now = facts_of(_load_data(folder, recipe, facts))
    facts = replace(facts, num_test=now.num_test, num_validation=now.num_validation)
    blueprint = blueprint_of(found, recipe, facts, model)
    blueprint.stage_blocks(stages)
    build_task_loss(recipe, torch.device("cpu"))  # Before a process is started that cannot.
    job = Job(
        recipe,
        folder,
        facts,
        blueprint.shapes,
        stages,
        start_step=found.step,
        skeleton=None if model is None else skeleton_of(blueprint.network, stages),
        user_data=folder.user_data.exists(),
        evaluates_only=True,
    )
    with Interrupts(most=0 if stages == 1 else None) as interrupts:
        return merge_results(job, carry_out(job, interrupts, watch), blueprint.num_blocks)


def evaluate_exits(
    run: str | Path,
    thresholds: Sequence[float] = THRESHOLDS,
    *,
    model: Model | None = None,
    best: bool = False,
    step: int | None = None,
) -> ExitReport:
    """What the exits of a run's newest checkpoint are worth, on the test set of its data.

    It works in this process on the CPU, with the batches, the precision and the threads of
    training, so every exit is exactly as accurate as ``evaluate`` says.

    Args:
        run: A run folder.
        thresholds: Confidences at which a sample leaves, each above 0 and at most 1.
        model: The network, where it was given from Python; it is not changed.
        best: Take the checkpoint with the best validation accuracy instead of the newest.
        step: Take the checkpoint after so many training batches.

    Raises:
        UsageError: A threshold is not, both ``best`` and ``step`` are given, or the data is
            missing or is not the run's.
        RunFolderError: It is no run, or has no such checkpoint.
        ModelError: ``model`` is missing, is not wanted, or is another network.
        CheckpointError: All its checkpoints are damaged, or the one that is asked for is.
    """
    check_thresholds(thresholds)
    num_threads = torch.get_num_threads()
    try:
        with Interrupts(most=0):
            folder, found, recipe = open_checkpoint(run, model, best=best, step=step)
            torch.set_num_threads(recipe.train.threads_per_stage)
            facts = found.facts(folder)
            network = network_of(found, recipe, facts, model)
            test = _load_data(folder, recipe, facts).dataset.test
            return measure_exits(
                network,
                test.inputs,
                test.targets,
                thresholds=thresholds,
                batch_size=recipe.eval_batch_size,
                task_loss=build_task_loss(recipe, torch.device("cpu")),
            )
    finally:
        torch.set_num_threads(num_threads)


def _on_devices_here(recipe: Recipe) -> Recipe:
    """The recipe with its devices, or where this machine or so many stages have others, with what
    there is."""
    devices = recipe.runtime.devices
    if not isinstance(devices, str) and len(set(devices)) == 1:
        recipe = recipe.with_settings([f"runtime.devices={devices[0]}"])
    try:
        check_devices(recipe)
    except RecipeError as error:
        _log.warning("evaluated on other devices than the run was trained on: %s", error)
        return recipe.with_settings(["runtime.devices=auto"])
    return recipe


def _load_data(folder: RunFolder, recipe: Recipe, facts: DataFacts) -> PreparedData:
    """The user's own data where the run has some, otherwise what the recipe names, prepared.

    Raises:
        DataError: It is missing or damaged, or of another kind than the run's.
    """
    kept = folder.user_data
    is_given = kept.exists()
    if facts.is_given and not is_given:
        raise DataError(
            f"{kept} is not there, which the run was given from Python: put it back from a copy, "
            f"or give the run the same arrays again (data=..., resume=True), which writes it."
        )
    data = read_kept(kept, facts) if is_given else load_dataset(recipe.data)
    if (data.input_shape, data.num_classes) != (facts.input_shape, facts.num_classes):
        raise DataError(
            f"the run was trained on samples of shape {facts.input_shape} in {facts.num_classes} "
            f"classes, but its data has {data.input_shape} in {data.num_classes} now: put back "
            f"what it had."
        )
    if data.num_tokens != facts.num_tokens:
        raise DataError(
            f"the run was trained on {facts.num_tokens} different tokens, but its data has "
            f"{data.num_tokens} now: put back what it had."
        )
    prepared = prepare(data, recipe.data)
    if recipe.data.is_own and not is_given:
        check_same_contents(recipe.data.name, prepared.dataset, facts, _PUT_BACK)
    return prepared
