"""Evaluate a run's newest checkpoint again."""

from __future__ import annotations

from pathlib import Path

from ppll.data import Dataset, load_dataset, prepare
from ppll.data.preparation import facts_of
from ppll.errors import RunFolderError
from ppll.interrupts import Interrupts
from ppll.job import Job, draw_blueprint
from ppll.launch import Watcher
from ppll.models import OWN_MODEL
from ppll.recovery import newest_whole
from ppll.restarts import carry_out
from ppll.result import Result, merge_results
from ppll.run_folder import RunFolder

__all__ = ["evaluate"]


def evaluate(run: str | Path, stages: int = 1, watch: Watcher | None = None) -> Result:
    """Evaluate every exit of a run's newest checkpoint.

    Raises:
        RunFolderError: It is no run, has no checkpoint, or its network was given from Python.
        CheckpointError: All its checkpoints are damaged.
    """
    folder = RunFolder.open(Path(run))
    recipe = folder.read_recipe().with_settings([f"runtime.stages={stages}"])
    if recipe.model.name == OWN_MODEL:
        raise RunFolderError(
            f"the network of {run} was given from Python, so it is not known here: use "
            f"ppll.load(run, model=...)."
        )
    found = newest_whole(folder.checkpoints)
    if found is None:
        raise RunFolderError(f"{run} has no whole checkpoint.")
    own_data = folder.user_data.exists()
    dataset = Dataset.load(folder.user_data) if own_data else load_dataset(recipe.data)
    facts = facts_of(prepare(dataset, recipe.data))
    blueprint = draw_blueprint(recipe, facts, None)
    blueprint.stage_blocks(stages)
    job = Job(
        recipe,
        folder,
        facts,
        blueprint.shapes,
        stages,
        start_step=found.step,
        user_data=own_data,
        evaluates_only=True,
    )
    with Interrupts(most=0 if stages == 1 else None) as interrupts:
        return merge_results(job, carry_out(job, interrupts, watch), blueprint.num_blocks)
