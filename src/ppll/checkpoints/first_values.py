"""From a network's first values to the checkpoint of step 0, and back into a user's network.

Starting is resuming from step 0: every rank takes its values from that checkpoint, whoever made
the network and wherever the rank runs.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ppll.blocks.blueprint import Blueprint
from ppll.blocks.modules import named_tensors
from ppll.checkpoints.checkpoint import commit, is_committed, step_folder, write_block
from ppll.checkpoints.reader import TensorReader
from ppll.checkpoints.resume import training_sections
from ppll.checkpoints.same_network import record_of
from ppll.errors import CheckpointError, ModelError
from ppll.models.empty import emptied
from ppll.models.identity import describe_layers
from ppll.models.initialising import initialise
from ppll.models.network import Network
from ppll.run_folder import RunFolder

__all__ = ["first_values", "put_back", "skeleton_of", "write_first_checkpoint"]


def skeleton_of(network: Network, num_ranks: int) -> Network:
    """The network without its values, which travel in the checkpoint of step 0.

    Raises:
        ModelError: It cannot be handed to other processes, and there are some.
    """
    layers = [dataclasses.replace(layer, module=emptied(layer.module)) for layer in network.layers]
    skeleton = dataclasses.replace(network, layers=tuple(layers), original=None)
    if num_ranks > 1:
        try:
            pickle.dumps(skeleton)
        except Exception as error:
            raise ModelError(
                f"the network cannot be handed to other processes ({error}): define its classes "
                f"at the top of a module and use no lambdas, or set runtime.stages = 1 and "
                f"train.replicas = 1."
            ) from None
    return skeleton


def write_first_checkpoint(
    blueprint: Blueprint,
    checkpoints: Path,
    *,
    own: bool,
    trained: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the checkpoint of step 0, from which every rank starts.

    Args:
        blueprint: The network cut into blocks.
        checkpoints: The run's folder of checkpoints.
        own: Whether the network is a user's and starts from the values that it has.
        trained: Values to start from where there are some of that name and shape.
    """
    target = step_folder(checkpoints, 0)
    given = {**(blueprint.network.named_tensors() if own else {}), **(trained or {})}
    for index in range(blueprint.num_blocks):
        modules = blueprint.build_modules(index, torch.device("cpu"))
        tensors: dict[str, Tensor] = {}
        for prefix, module in modules.named():
            tensors |= first_values(prefix, module, given, blueprint.recipe.train.seed)
        write_block(target, 0, index, tensors, {}, modules.transient_names())
    record = record_of(describe_layers(blueprint.network), blueprint.facts)
    commit(target, 0, blueprint.num_blocks, training_sections(blueprint.recipe), record)


def first_values(
    prefix: str, module: nn.Module, given: Mapping[str, Tensor], seed: int
) -> dict[str, Tensor]:
    """The values given for a module, or its own first ones where they are not of it.

    Args:
        prefix: The module's name in the whole model.
        module: On the CPU; what it holds is overwritten.
        given: Values by name.
        seed: Of the run.

    Raises:
        ModelError: A module can neither take values nor draw its own.
    """
    tensors = named_tensors(prefix, module)
    found = {name: given[name] for name in tensors if name in given}
    if any(found[name].shape != tensors[name].shape for name in found):
        found = {}
    if set(found) != set(tensors):
        initialise(module, prefix, seed, given)
    return tensors | found


def put_back(folder: RunFolder, step: int, network: Network) -> None:
    """Copy the values of a run's step into a user's own network.

    Raises:
        CheckpointError: They are not saved, since some are not finite.
    """
    checkpoint = step_folder(folder.checkpoints, step)
    if not is_committed(checkpoint):
        raise CheckpointError(
            f"the values of step {step} are not saved, as some are not finite "
            f'(train.on_nonfinite = "ignore" goes on with them), so the network keeps those that '
            f"it had. What the run came to is in {folder.result}."
        )
    saved = TensorReader(checkpoint).averaged_weights()
    with torch.no_grad():
        for name, tensor in network.named_tensors().items():
            tensor.copy_(saved[name])
