"""Trained weights from a run or a file, to start from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from ppll.blocks.modules import AUXILIARY, CONTEXT
from ppll.checkpoints.recovery import newest_whole
from ppll.errors import ModelError, unknown_name
from ppll.models.lora import ADDED
from ppll.models.network import Network
from ppll.run_folder import RunFolder

__all__ = ["read_weights"]

_MOST_NAMED = 5


def read_weights(source: Path, network: Network, fresh: Sequence[str] = ()) -> dict[str, Tensor]:
    """Parameters and buffers by name, of a run's newest checkpoint or a safetensors file.

    Where a run keeps averages of its parameters, these are read, as ``ppll export`` writes them.

    Auxiliary networks may differ from those of the run that is to come.

    Args:
        source: A run folder or a safetensors file.
        network: What they are for.
        fresh: Layers of it, or parts of some, that are left out.

    Raises:
        ModelError: It is neither, cannot be read, or is of another network: a tensor is missing,
            has another shape or kind of numbers, is not finite, or belongs nowhere. Or the network
            has nothing that is called as in ``fresh``.
        CheckpointError: The run's checkpoints are damaged.
    """
    _check_known(fresh, network)
    weights = {n: t for n, t in _read(source).items() if not _lies_in(n, fresh)}
    _check(source, weights, network, fresh)
    return weights


def _check_known(fresh: Sequence[str], network: Network) -> None:
    for path in fresh:
        if not any(_lies_in(name, [path]) for name in network.state_dict()):
            parts = _parts_of(network, network.state_dict())
            raise ModelError(unknown_name("layer in model.fresh", path, parts))


def _parts_of(network: Network, names: Iterable[str]) -> list[str]:
    """The layers that hold these parameters; of stem and head of a model that was cut, which have
    no path of their own, the modules that do."""
    paths = [layer.path for layer in network.layers if layer.path]
    found = [
        next((path for path in paths if _lies_in(name, [path])), name.rpartition(".")[0] or name)
        for name in names
    ]
    return list(dict.fromkeys(found))


def _lies_in(name: str, paths: Iterable[str]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in paths)


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
    """What the file of an export holds, and auxiliary networks.

    What is no part of a state dict, such as a table of positions, each network makes for itself.
    """
    found = newest_whole(RunFolder.open(source).checkpoints)
    if found is None:
        raise ModelError(f"model.weights: {source} has no whole checkpoint.")
    records = found.reader.records()
    weights = found.reader.averaged_weights()
    return {name: tensor for name, tensor in weights.items() if records[name].persistent}


def _check(
    source: Path, weights: dict[str, Tensor], network: Network, fresh: Sequence[str]
) -> None:
    wanted = {n: t for n, t in network.state_dict().items() if not _lies_in(n, fresh)}
    found = {n: t for n, t in weights.items() if not _lies_in(n, (AUXILIARY, CONTEXT))}
    held = network.named_tensors()  # What is shared within a layer has its first name only.
    missing = [n for n in wanted if n in held and n not in found and not _is_added(n)]
    problems = {n: "is missing" for n in missing}
    problems |= {
        n: problem
        for n in wanted
        if n in found and (problem := _problem(found[n], wanted[n])) is not None
    }
    nowhere = [n for n in found if n not in wanted and n not in held]
    if problems or nowhere:
        listed = [f"{n} {text}" for n, text in problems.items()]
        listed += [f"{n} belongs nowhere" for n in nowhere]
        more = f" and {len(listed) - _MOST_NAMED} more" if len(listed) > _MOST_NAMED else ""
        otherwise = "" if nowhere else _leave_out(problems, network, fresh)
        raise ModelError(
            f"model.weights: {source} is of another network: {'; '.join(listed[:_MOST_NAMED])}"
            f"{more}. Give model the options that it was trained with{otherwise}."
        )


def _leave_out(names: Iterable[str], network: Network, fresh: Sequence[str]) -> str:
    """How to start without the layers of these parameters, where others are left."""
    unfit = _parts_of(network, names)
    if all(_lies_in(name, unfit) for name in network.state_dict()):
        return ""
    return f", or begin anew with what does not fit: model.fresh = {json.dumps([*fresh, *unfit])}"


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
