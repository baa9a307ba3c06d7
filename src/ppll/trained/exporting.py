"""A trained network as a plain file, without what it was trained with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import safetensors.torch

from ppll.blocks.modules import AUXILIARY
from ppll.checkpoints.recovery import find
from ppll.checkpoints.resume import as_saved
from ppll.durable import write_asked
from ppll.errors import RunFolderError
from ppll.run_folder import RunFolder

__all__ = ["export"]


def export(run: str | Path, to: str | Path, *, best: bool = False, step: int | None = None) -> int:
    """Write the network of a run's newest checkpoint as safetensors.

    The file holds the state dict of the un-split model: its parameters and persistent buffers under
    their names there, no auxiliary networks. Where the run keeps averages of its parameters, it is
    these. Its one metadata key, ``ppll``, says as JSON what the network is and how its input is
    normalised: of images in bytes it takes ``(images / 255 - mean) / std`` in float32, by the
    ``mean`` and ``std`` of every channel under ``data``; where these are null, what it was trained
    on.

    Args:
        run: A run folder.
        to: The file to write; its name ends in ``.safetensors``.
        best: Take the checkpoint with the best validation accuracy instead of the newest.
        step: Take the checkpoint after so many training batches.

    Returns:
        The checkpoint's step.

    Raises:
        RunFolderError: It is no run or has no such checkpoint, or the file is there or cannot be.
        UsageError: Both ``best`` and ``step`` are given, or the file cannot be written.
        CheckpointError: All its checkpoints are damaged, or the one that is asked for is.
    """
    target, folder = Path(to), RunFolder.open(Path(run))
    _check_target(target)
    found = find(folder, best=best, step=step)
    records = found.reader.records()
    names = [
        name
        for name, record in records.items()
        if record.persistent and not name.startswith(f"{AUXILIARY}.")
    ]
    model = as_saved(folder.read_recipe(), found.reader.manifest.recipe).model
    about = {
        "step": found.step,
        "model": model.model_dump(mode="json", exclude={"weights", "fresh"}),
        "data": dataclasses.asdict(found.facts(folder)),
    }
    weights = found.reader.averaged_weights()
    content = safetensors.torch.save({n: weights[n] for n in names}, {"ppll": json.dumps(about)})
    write_asked(target, content)
    return found.step


def _check_target(target: Path) -> None:
    if target.suffix != ".safetensors":
        raise RunFolderError(f"{target} must end in .safetensors.")
    if target.exists():
        raise RunFolderError(f"{target} is there already: choose another name, or remove it.")
    if not target.parent.is_dir():
        raise RunFolderError(f"there is no folder {target.parent}: make it, or choose another.")
