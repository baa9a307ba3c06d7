"""For tests, ours and those of people who write methods, networks or transports."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ppll.config import Recipe
from ppll.data import Dataset
from ppll.faults import FAULT_VARIABLE, Fault, InjectedFault
from ppll.models.splitting import Model
from ppll.trainer import Trainer

__all__ = ["FAULT_VARIABLE", "Fault", "InjectedFault", "check_placements"]


def check_placements(
    recipe: Recipe,
    *,
    model: Model | None = None,
    data: Dataset | None = None,
    stages: Sequence[int] = (1, 2, 4),
    max_steps: int = 5,
) -> str:
    """Train a few steps on several numbers of stages and hold that all come to the same bits.

    One stage is trained in this process, several in processes of their own, which import the
    script that calls this, if it is one. Nothing is left behind.

    Args:
        recipe: What to train.
        model: Your own network; copies of it are trained.
        data: Your own data.
        stages: Numbers of stages, each at most that of blocks.
        max_steps: Training batches.

    Returns:
        ``weights_sha256`` of all of them.

    Raises:
        AssertionError: They differ; the message says what each came to.
        UsageError: The recipe cannot be trained so.
        WorkerError: A run failed.
    """
    hashes: dict[int, str] = {}
    for num_stages in stages:
        settings = [f"train.max_steps={max_steps}", f"runtime.stages={num_stages}"]
        with tempfile.TemporaryDirectory(prefix="ppll-") as folder:
            trainer = Trainer(
                recipe.with_settings(settings),
                model=copy.deepcopy(model),
                data=data,
                out=Path(folder) / "run",
                progress=False,
            )
            hashes[num_stages] = trainer.fit().weights_sha256
    if len({*hashes.values()}) > 1:
        found = ", ".join(f"{num}: {value[:12]}" for num, value in hashes.items())
        raise AssertionError(
            f"placement changes what is trained; weights_sha256 by number of stages: {found}."
        )
    return hashes[stages[0]]
