"""Trained weights from a run or a file, to start from."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from ppll.blocks.modules import AUXILIARY, CONTEXT
from ppll.checkpoints.recovery import newest_whole
from ppll.errors import ModelError
from ppll.models.lora import ADDED
from ppll.models.network import Network
from ppll.run_folder import RunFolder

__all__ = ["read_weights"]

_MOST_NAMED = 5


def read_weights(source: Path, network: Network) -> dict[str, Tensor]:
    """Parameters and buffers by name, of a run's newest checkpoint or a safetensors file.

    Where a run keeps averages of its parameters, these are read, as ``ppll export`` writes them.

    Auxiliary networks may differ from those of the run that is to come.

    Raises:
        ModelError: It is neither, cannot be read, or is of another network: a tensor is missing,
            has another shape or kind of numbers, is not finite, or belongs nowhere.
        CheckpointError: The run's checkpoints are damaged.
    """
    weights = _read(source)
    _check(source, weights, network)
    return weights


def _read(source: Path) -> dict[str, Tensor]:
    try:
        if source.is_dir():
            return _read_run(source)
        if source.suffix == ".safetensors":
            if source.exists() and not source.is_file():
                raise OSError("it is no regular file")
            return safetensors.torch.load_file(source)
    # Beside safetensors' own errors come torch's about types and shapes that it does not know.
    except (OSError, safetensors.SafetensorError, LookupError, RuntimeError, TypeError) as error:
        raise ModelError(f"model.weights: cannot read {source}: {error!s:.200}.") from None
    raise ModelError(
        f"model.weights: {source} is neither a run folder nor a .safetensors file. Other "
        f"formats are not read, since loading them may run what is in them."
    )


def _read_run(source: Path) -> dict[str, Tensor]:
    found = newest_whole(RunFolder.open(source).checkpoints)
    if found is None:
        raise ModelError(f"model.weights: {source} has no whole checkpoint.")
    return found.reader.averaged_weights()


def _check(source: Path, weights: dict[str, Tensor], network: Network) -> None:
    wanted = network.state_dict()
    extra = (f"{AUXILIARY}.", f"{CONTEXT}.")
    found = {n: t for n, t in weights.items() if not n.startswith(extra)}
    problems = [f"{n} is missing" for n in wanted if n not in found and not _is_added(n)]
    problems += [
        f"{n} {problem}"
        for n in wanted
        if n in found and (problem := _problem(found[n], wanted[n])) is not None
    ]
    transient = network.named_tensors()
    problems += [f"{n} belongs nowhere" for n in found if n not in wanted and n not in transient]
    if problems:
        more = f" and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
        raise ModelError(
            f"model.weights: {source} is of another network: {'; '.join(problems[:_MOST_NAMED])}"
            f"{more}. Give model the options that it was trained with."
        )


def _is_added(name: str) -> bool:
    """Whether a network without low-rank additions does not have it."""
    return name.rpartition(".")[2] in ADDED


def _problem(found: Tensor, wanted: Tensor) -> str | None:
    """Why a tensor cannot take another's place; none where it can."""
    if found.shape != wanted.shape:
        return f"has shape {tuple(found.shape)}, the network needs {tuple(wanted.shape)}"
    both_are_real = found.is_floating_point() and wanted.is_floating_point()
    if found.dtype != wanted.dtype and not both_are_real:
        return f"holds {found.dtype}, the network needs {wanted.dtype}"
    if not found.float().isfinite().all():
        return "holds a value that is not finite"
    return None
