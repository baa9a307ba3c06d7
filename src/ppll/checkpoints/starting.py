"""How a run begins: anew, or where it stopped. Either way it starts from a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ppll.blocks.blueprint import Blueprint
from ppll.blocks.modules import BlockModules, named_tensors
from ppll.checkpoints.first_values import write_first_checkpoint
from ppll.checkpoints.manifest import Manifest, TensorRecord
from ppll.checkpoints.recovery import Recovered, forget_validations, newest_whole, set_aside
from ppll.checkpoints.resume import Change, changes, refuse_changes, training_sections
from ppll.checkpoints.run_data import keep_data, was_given
from ppll.checkpoints.same_network import other_layers
from ppll.claim import Claim
from ppll.config import Recipe
from ppll.data import Dataset
from ppll.errors import DataError, ModelError, RecipeError, RunFolderError
from ppll.job import Job
from ppll.metrics import cut_back
from ppll.models.identity import describe_layers

__all__ = ["Beginning", "begin", "find_beginning", "next_start"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beginning:
    """What a run is to begin with.

    Attributes:
        blueprint: The network cut into blocks.
        job: The run, as far as it is known before it starts.
        own_data: Data that was given from Python.
        trained: Values to start from instead of first ones, by name.
        resumes: Whether to go on where an earlier start stopped, if there was one.
        allowed: Changes of the recipe that may be, by key or section.
    """

    blueprint: Blueprint
    job: Job
    own_data: Dataset | None = None
    trained: Mapping[str, Tensor] | None = None
    resumes: bool = False
    allowed: tuple[str, ...] = ()

    @property
    def own_model(self) -> bool:
        """Whether the network was given from Python."""
        return self.job.skeleton is not None


def begin(beginning: Beginning) -> Recovered | None:
    """Make the run folder ready, so that ``next_start`` finds a checkpoint in it.

    Returns:
        The checkpoint that the run goes on from; none where it begins anew.

    Raises:
        UsageError: The recipe, the user's network or the data is another one than the run's.
        CheckpointError: There are checkpoints, and all are damaged.
    """
    found = find_beginning(beginning)
    if found is None:
        _begin_anew(beginning)
    else:
        _go_on(found.reader.manifest, beginning)
    return found


def _begin_anew(beginning: Beginning) -> None:
    job = beginning.job
    job.folder.describe(job.recipe, job.facts)
    keep_data(job.folder, beginning.own_data, may_differ=True)
    write_first_checkpoint(
        beginning.blueprint,
        job.folder.checkpoints,
        own=beginning.own_model,
        trained=beginning.trained,
    )


def _go_on(manifest: Manifest, beginning: Beginning) -> None:
    job = beginning.job
    if _changed_facts(manifest, beginning):
        forget_validations(job.folder.checkpoints)
    may_differ = beginning.own_data is None or "data" in beginning.allowed
    # Their digest is written after them: what the disk did not take would pass for the run's.
    keep_data(job.folder, beginning.own_data, may_differ=may_differ)
    if differences := job.folder.describe(job.recipe, job.facts):
        _log.warning(
            "the run goes on in another environment, so the bits may differ from those of an "
            "unbroken one: %s",
            "; ".join(differences),
        )


def find_beginning(beginning: Beginning) -> Recovered | None:
    """The checkpoint that a run goes on from; none where it begins anew. Nothing is written.

    Raises:
        UsageError: The recipe, the user's network or the data is another one than the run's.
        CheckpointError: There are checkpoints, and all are damaged.
    """
    if not beginning.resumes:
        return None
    found = newest_whole(beginning.job.folder.checkpoints)
    if found is not None:
        _check_same_data(found.reader.manifest, beginning)
        allowed = _check_same_run(found, beginning)
        _check_same_model(found, beginning)
        _check_learns(found, beginning)
        for change in allowed:
            _log.warning("the run goes on with another %s", change)
    return found


def _check_same_data(manifest: Manifest, beginning: Beginning) -> None:
    """Refuse other arrays, and what has changed where the recipe finds its data."""
    folder, data = beginning.job.folder, beginning.own_data
    differences: list[str] = []
    if data is None:
        differences = _changed_facts(manifest, beginning)
    elif not was_given(folder, data, beginning.job.facts):
        differences = ["arrays from Python (the run had others, or none)"]
    listed = "\n".join(f"  {difference}" for difference in differences)
    if differences and "data" in beginning.allowed:
        _log.warning("the run goes on with other data:\n%s", listed)
    elif differences:
        raise DataError(
            f"the run was trained on other data than is given now:\n{listed}\nGive it the same, "
            f"start a new run with another --out, or go on with the new data all the same: "
            f'--allow-change data (allow_change=("data",) in Python).'
        )


def _changed_facts(manifest: Manifest, beginning: Beginning) -> list[str]:
    """What the run knows otherwise of its data, although its recipe names the same."""
    job = beginning.job
    found = changes(manifest.recipe, training_sections(job.recipe))
    if any(change.key.startswith("data.") for change in found):
        return []  # They are refused, or allowed, by key.
    with suppress(RunFolderError):  # They are written anew where they cannot be read.
        return job.facts.differences(job.folder.read_facts())
    return []


def _check_same_run(found: Recovered, beginning: Beginning) -> list[Change]:
    """The changes that are allowed; others are refused."""
    manifest = found.reader.manifest
    recipe, per_epoch = beginning.job.recipe, beginning.job.facts.steps_per_epoch
    if manifest.step > recipe.num_steps(per_epoch):
        raise RecipeError(
            f"the run has {manifest.step} steps behind it, but the recipe ends after "
            f"{recipe.num_steps(per_epoch)}: ask for at least as many (train.epochs, "
            f"train.max_steps)."
        )
    has_other_length = _num_steps(manifest, per_epoch) != recipe.num_steps(per_epoch)
    length_matters = beginning.blueprint.knows_end and has_other_length
    changed = [*_changes(found, beginning.job), *_other_layers(found, beginning)]
    return refuse_changes(changed, beginning.allowed, length_matters=length_matters)


def _other_layers(found: Recovered, beginning: Beginning) -> list[Change]:
    """The network's change, unless the recipe tells of it."""
    values = ("model.weights", "model.fresh")
    keys = [change.key for change in _changes(found, beginning.job) if change.key not in values]
    if any(key.startswith("model.") for key in keys):
        return []
    network, records = beginning.blueprint.network, found.reader.records()
    unsaved = [x.name for x in network.layers if not _is_held(x.path, x.module, records)]
    other = other_layers(found.reader.manifest.network, describe_layers(network), unsaved)
    return [] if other is None else [other]


def _check_learns(found: Recovered, beginning: Beginning) -> None:
    """Refuse changes after which modules would be left with first values."""
    fresh = _fresh_modules(beginning, found)
    if fresh and found.step == beginning.blueprint.num_steps:
        raise RecipeError(
            f"the run is at its end (step {found.step}), but would have first values in "
            f"{', '.join(fresh)}, which nothing would train: give it the old values, or more to "
            f"train (train.epochs, train.max_steps)."
        )


def _check_same_model(found: Recovered, beginning: Beginning) -> None:
    if not beginning.own_model:
        return
    own = {layer.path for layer in beginning.blueprint.network.layers}
    if missing := [prefix for prefix in _fresh_modules(beginning, found) if prefix in own]:
        raise ModelError(
            f"layer {missing[0]!r} of the network is not in the checkpoint, or has other shapes "
            f"there: give the network that the run was started with."
        )


def _num_steps(manifest: Manifest, steps_per_epoch: int) -> int:
    """Length of the run that a checkpoint is of."""
    train = manifest.recipe.get("train", {})
    length = {key: train[key] for key in ("epochs", "max_steps") if key in train}
    return Recipe.from_dict({"train": length}).num_steps(steps_per_epoch)


def next_start(beginning: Beginning, generation: int) -> Job:
    """The job that goes on from the newest whole checkpoint; what came after it is forgotten.

    Args:
        beginning: What the run is to begin with.
        generation: How often it has been started again by itself.

    Raises:
        CheckpointError: No checkpoint is whole.
    """
    job = beginning.job
    found = newest_whole(job.folder.checkpoints)
    if found is None:
        raise RunFolderError(f"{job.folder.path} has no checkpoint to start from.")
    for reason in found.passed_over:
        _log.warning("passed over a newer checkpoint: %s", reason)
    if found.step == beginning.blueprint.num_steps:
        _log.info("finished already at step %d: it is tested again", found.step)
    elif found.step:
        _log.info("goes on from the checkpoint of step %d", found.step)
    fresh = _fresh_modules(beginning, found)
    for prefix in fresh:
        _log.warning("%s is not in the checkpoint and starts with first values", prefix)
    set_aside(job.folder.checkpoints, found.step)
    cut_back(job.folder.metric_parts, found.step)
    job.folder.note(
        step=found.step,
        generation=generation,
        num_stages=job.num_stages,
        passed_over=found.passed_over,
        changed=[str(c) for c in _changes(found, job)],
        fresh=fresh,
    )
    return replace(
        job,
        start_step=found.step,
        generation=generation,
        claim=Claim.take(job.folder.path),
        fresh=frozenset(fresh),
        keeps_optimizer="optimizer.name" not in {c.key for c in _changes(found, job)},
    )


def _changes(found: Recovered, job: Job) -> list[Change]:
    return changes(found.reader.manifest.recipe, training_sections(job.recipe))


def _fresh_modules(beginning: Beginning, found: Recovered) -> list[str]:
    """Prefixes of the modules that the checkpoint does not hold as they are now."""
    records, blueprint = found.reader.records(), beginning.blueprint
    outlines = [blueprint.outline(index) for index in range(blueprint.num_blocks)]
    return [prefix for outline in outlines for prefix in _unmatched(outline, records)]


def _unmatched(outline: BlockModules, records: dict[str, TensorRecord]) -> list[str]:
    return [prefix for prefix, module in outline.named() if not _is_held(prefix, module, records)]


def _is_held(prefix: str, module: nn.Module, records: dict[str, TensorRecord]) -> bool:
    """Whether a checkpoint has all tensors of a module, by their names and shapes."""
    return all(
        name in records and torch.Size(records[name].shape) == tensor.shape
        for name, tensor in named_tensors(prefix, module).items()
    )
